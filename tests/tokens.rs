//! The digest of a source is one of its code: comments and layout change no key.

#[path = "../build/tokens.rs"]
mod tokens;

use std::path::Path;
use tokens::{cuda, rust};

const EQUATIONS: &str = "replicate/method/equations.rs";

fn equations() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(EQUATIONS)).unwrap()
}

#[test]
fn comments_layout_and_tests_do_not_count() {
    let code = rust("a.rs", "fn f(x: f32) -> f32 { x + 1.0 }");
    for same in [
        "//! Docs.\n\n/// More of them.\nfn f(x: f32) -> f32 {\n    // Why.\n    x + 1.0\n}\n",
        "fn f(x: f32) -> f32 { x + 1.0 }\n#[cfg(test)]\nmod tests { fn g() {} }",
        "fn f(x: f32) -> f32 { x + 1.0 }\n#[cfg(test)]\nuse std::fs;",
    ] {
        assert_eq!(rust("a.rs", same), code, "{same}");
    }
    for other in ["fn f(x: f32) -> f32 { x - 1.0 }", "#[inline]\nfn f(x: f32) -> f32 { x + 1.0 }"] {
        assert_ne!(rust("a.rs", other), code, "{other}");
    }
    assert_eq!(cuda("a = b; // why\n\n  c = d;"), cuda("a = b;\nc = d;"));
    assert_ne!(cuda("a = b;"), cuda("a = c;"));
}

/// A key names a divergence by its values: another one in the same source changes none.
#[test]
fn a_throw_away_divergence_changes_no_digest() {
    let text = equations();
    let more = text.replacen("    DiRm,\n", "    DiRm,\n    ThrowAway,\n", 1).replacen(
        "Divergence::DiKl => ",
        "Divergence::ThrowAway => l.sqr(),\n            Divergence::DiKl => ",
        1,
    );
    assert_ne!(text, more);
    assert_eq!(rust(EQUATIONS, &text), rust(EQUATIONS, &more));
    let edits =
        [("softplus(&real.neg()?)?", "softplus(real)?"), ("(divergence.phi(l)? * w)?", "divergence.phi(l)?")];
    for (from, to) in edits {
        let edited = text.replacen(from, to, 1);
        assert_ne!(text, edited);
        assert_ne!(rust(EQUATIONS, &text), rust(EQUATIONS, &edited));
    }
}

/// A new method's file is declared in its folder, whose other methods it does not change.
#[test]
fn a_declaration_of_a_module_changes_no_digest() {
    let code = rust("mod.rs", "pub mod a;\nfn f() {}");
    assert_eq!(rust("mod.rs", "pub mod a;\nmod b;\npub(crate) mod c;\nfn f() {}"), code);
    assert_ne!(rust("mod.rs", "pub mod a;\nmod b { fn g() {} }\nfn f() {}"), code);
}
