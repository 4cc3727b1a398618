//! Rust source with comments and the insides of literals blanked out, so that a rule about code sees code only.
//! Lines keep their numbers. It is no parser: it knows comments, strings, raw strings, characters and lifetimes.

pub struct Masked {
    /// The code; everything else is spaces.
    pub code: String,
    /// The comments; everything else is spaces.
    pub comments: String,
}

pub fn mask(source: &str) -> Masked {
    let mut masker = Masker { rest: source, code: String::new(), comments: String::new() };
    while !masker.rest.is_empty() {
        masker.step();
    }
    Masked { code: masker.code, comments: masker.comments }
}

struct Masker<'a> {
    rest: &'a str,
    code: String,
    comments: String,
}

impl Masker<'_> {
    fn step(&mut self) {
        let rest = self.rest;
        let after_word = self.code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if rest.starts_with("//") {
            self.comment(rest.find('\n').unwrap_or(rest.len()));
        } else if rest.starts_with("/*") {
            self.comment(block_comment(rest));
        } else if let Some(length) = raw_string(rest).filter(|_| !after_word) {
            self.blank(length);
        } else if rest.starts_with('"') {
            self.blank(string(rest));
        } else if let Some(length) = character(rest) {
            self.blank(length);
        } else {
            self.code(rest.chars().next().map_or(0, char::len_utf8));
        }
    }

    fn take(&mut self, length: usize) -> &str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn code(&mut self, length: usize) {
        let taken = self.take(length).to_owned();
        self.comments.push_str(&blanked(&taken));
        self.code.push_str(&taken);
    }

    fn comment(&mut self, length: usize) {
        let taken = self.take(length).to_owned();
        self.code.push_str(&blanked(&taken));
        self.comments.push_str(&taken);
    }

    fn blank(&mut self, length: usize) {
        let blank = blanked(self.take(length));
        self.code.push_str(&blank);
        self.comments.push_str(&blank);
    }
}

fn blanked(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect()
}

/// Length of a block comment at the start; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let start = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let body = start[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(rest.len() - body.len() + length)
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of a character literal at the start; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    let first = body.chars().next()?;
    if first == '\\' {
        let end = body.char_indices().skip(2).find(|(_, c)| *c == '\'')?.0;
        return Some(1 + end + 1);
    }
    body[first.len_utf8()..].starts_with('\'').then_some(first.len_utf8() + 2)
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn code_survives_and_text_does_not() {
        let source = "let a = \"unsafe // no\"; // todo\nlet b = 'x'; let c: &'a str = r#\"dbg!\"#; /* a /* b */ c */ d";
        let masked = mask(source);
        assert_eq!(masked.code.lines().count(), 2);
        for gone in ["unsafe", "todo", "'x'", "dbg", "/*", "c */"] {
            assert!(!masked.code.contains(gone), "{gone} in {}", masked.code);
        }
        assert!(masked.code.contains("&'a str") && masked.code.ends_with(" d"));
        assert!(masked.comments.contains("// todo") && masked.comments.contains("/* a /* b */ c */"));
    }

    #[test]
    fn escapes_do_not_end_a_literal_early() {
        let source = r#"f("\"x\\", '\'', '\u{41}') y"#;
        assert_eq!(mask(source).code.split_whitespace().collect::<String>(), "f(,,)y");
    }
}
