//! Formats numbers and lists for people, in the same way in every command.

use std::path::Path;

/// Formats a time with suitable precision: "45s", "1m30s", "8 min", "2.5 h", "43 h", "31 days", "17
/// years"; "unknown" if it is not finite.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown".into();
    }
    let (minutes, hours, days) = (seconds / 60.0, seconds / 3600.0, seconds / 86_400.0);
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..300 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ if minutes < 90.0 => format!("{minutes:.0} min"),
        _ if hours < 9.95 => format!("{hours:.1} h"),
        _ if hours < 72.0 => format!("{hours:.0} h"),
        _ if days < 730.0 => format!("{days:.0} days"),
        _ => format!("{:.0} years", days / 365.25),
    }
}

/// Formats a size in powers of 1000 with two or three digits: "512 B", "3.1 MB".
pub fn bytes(n: u64) -> String {
    let (mut value, mut unit) = (n as f64, "B");
    for larger in ["kB", "MB", "GB", "TB", "PB"] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    if unit != "B" && value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// Groups digits by thousands: "19,200".
pub fn thousands(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}

/// Capitalises the first letter.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// Joins items: "a, b and c".
pub fn and<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    match items.split_last() {
        Some((last, [])) => last.to_string(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// Joins items: "a, b or c".
pub fn or<T: AsRef<str>>(items: &[T]) -> String {
    let text = and(items);
    match text.rsplit_once(" and ") {
        Some((rest, last)) if items.len() > 1 => format!("{rest} or {last}"),
        _ => text,
    }
}

/// Formats a count with its noun: "1 seed", "3 seeds".
pub fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Makes the message "unknown row 'dijz': did you mean 'dijs'? it is one of edm, …".
pub fn unknown<'a>(what: &str, given: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known.iter().max_by(|a, b| strsim::jaro(given, a).total_cmp(&strsim::jaro(given, b)));
    let hint = match nearest {
        Some(&name) if strsim::jaro(given, name) > 0.7 => format!("did you mean '{name}'? "),
        _ => String::new(),
    };
    format!("unknown {what} '{given}': {hint}it is one of {}", known.join(", "))
}

/// A word that a shell takes as it is.
pub fn quoted(text: &str) -> String {
    match text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-:,=+".contains(c)) && !text.is_empty() {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// [`quoted`] of a path. Bytes that are no text, and control characters, are escaped as shells read
/// them.
pub fn quoted_path(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.contains(char::is_control) => quoted(text),
        _ => {
            let escape = |byte: &u8| match byte {
                b'\'' | b'\\' => format!("\\{}", *byte as char),
                b' '..=b'~' => (*byte as char).to_string(),
                byte => format!("\\x{byte:02x}"),
            };
            let bytes: String = path.as_os_str().as_encoded_bytes().iter().map(escape).collect();
            format!("$'{bytes}'")
        }
    }
}

/// Wraps text to lines of at most `width` characters; a longer word is cut.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("one line at least");
            let used = line.chars().count() + usize::from(!line.is_empty());
            if used + word.len() <= width {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.extend(word);
                break;
            }
            match line.is_empty() {
                true => line.extend(word.drain(..width)),
                false => lines.push(String::new()),
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_shell_takes_any_path_as_it_is() {
        for bytes in [b"plain/a.b".as_slice(), b"with blank", b"it's", b"\xe4\xff'\\\n\x1b[31m", b""] {
            let quoted = quoted_path(Path::new(std::ffi::OsStr::from_bytes(bytes)));
            assert!(!quoted.contains(char::is_control), "{quoted:?}");
            let line = format!("printf %s {quoted}");
            let Ok(output) = std::process::Command::new("bash").args(["-c", &line]).output() else { return };
            assert_eq!(output.stdout, bytes, "{quoted}");
        }
    }
}
