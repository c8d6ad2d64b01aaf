//! What of a source is code: its tokens, without comments, layout and tests.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Items that keys know by their values instead of their source.
const BY_VALUE: [(&str, &str); 1] = [("replicate/method/equations.rs", "Divergence")];

/// The tokens of a source: without comments, layout, tests and items known by value.
pub fn rust(name: &str, text: &str) -> String {
    let by_value =
        BY_VALUE.iter().filter(|(file, _)| *file == name).map(|(_, item)| *item).collect::<Vec<_>>();
    match text.parse::<TokenStream>() {
        Ok(tokens) => code(tokens, &by_value).to_string(),
        // The compiler will say what is wrong with it.
        Err(_) => text.to_string(),
    }
}

fn code(tokens: TokenStream, by_value: &[&str]) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if let Some((attribute, length)) = attribute(&tokens[at..]) {
            let skipped = if attribute.starts_with("doc") {
                length
            } else if attribute.starts_with("cfg (test)") || attribute.starts_with("cfg(test)") {
                length + item(&tokens[at + length..])
            } else {
                0
            };
            if skipped > 0 {
                at += skipped;
                continue;
            }
        }
        if let Some(length) = named(&tokens[at..], by_value).or_else(|| declaration(&tokens[at..])) {
            at += length;
            continue;
        }
        kept.push(match &tokens[at] {
            TokenTree::Group(group) => {
                let mut inner = Group::new(group.delimiter(), code(group.stream(), by_value));
                inner.set_span(group.span());
                TokenTree::Group(inner)
            }
            other => other.clone(),
        });
        at += 1;
    }
    kept.into_iter().collect()
}

/// The text of the attribute that begins here, and how many tokens it takes.
fn attribute(tokens: &[TokenTree]) -> Option<(String, usize)> {
    let (hash, group, length) = match tokens {
        [TokenTree::Punct(hash), TokenTree::Group(group), ..] => (hash, group, 2),
        // Of the file or the block that it stands in.
        [TokenTree::Punct(hash), TokenTree::Punct(_), TokenTree::Group(group), ..] => (hash, group, 3),
        _ => return None,
    };
    let found = hash.as_char() == '#' && group.delimiter() == Delimiter::Bracket;
    found.then(|| (group.stream().to_string(), length))
}

/// How many tokens the item takes that begins here: to its braces or semicolon.
fn item(tokens: &[TokenTree]) -> usize {
    let end = tokens.iter().position(|token| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    });
    end.map_or(tokens.len(), |end| end + 1)
}

/// The length of the `enum NAME` or `impl NAME` that begins here, for one of `names`.
fn named(tokens: &[TokenTree], names: &[&str]) -> Option<usize> {
    let [TokenTree::Ident(kind), TokenTree::Ident(name), ..] = tokens else { return None };
    let found = (kind == "enum" || kind == "impl") && names.iter().any(|known| name == known);
    found.then(|| item(tokens))
}

/// The length of the `mod NAME;` that begins here. Every file has a digest of its own, so that the
/// list of a folder's files is no code.
fn declaration(tokens: &[TokenTree]) -> Option<usize> {
    let word = |at: usize, word: &str| matches!(tokens.get(at), Some(TokenTree::Ident(t)) if t == word);
    let mut at = usize::from(word(0, "pub"));
    if at == 1 && matches!(tokens.get(1), Some(TokenTree::Group(_))) {
        at = 2;
    }
    let ends = matches!(tokens.get(at + 2), Some(TokenTree::Punct(p)) if p.as_char() == ';');
    (word(at, "mod") && ends).then_some(at + 3)
}

/// A CUDA source without comments and layout.
pub fn cuda(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or("").trim());
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}
