//! Words that readers stumble over, with what to write instead: the part of CONVENTIONS.md ("English") that a program
//! can check. A word counts in comments, texts and names alike.

use std::path::Path;

use super::problem::Problem;

const INSTEAD: [(&str, &str); 32] = [
    ("whoever", "the noun"),
    ("somebody", "the noun"),
    ("someone", "the noun"),
    ("anybody", "the noun"),
    ("everybody", "the noun"),
    ("nobody", "the noun, or `no …`"),
    ("manieth", "`index` or `number`"),
    ("is none", "`is not a …`"),
    ("by itself", "`on its own`"),
    ("where there is", "`if there is`"),
    ("stands still", "`is paused`, `is frozen` or `blocks`"),
    ("in vain", "`without success`"),
    ("for ever", "`forever`"),
    ("anew", "`again`"),
    ("afresh", "`again`"),
    ("time and again", "`again and again`"),
    ("has not got", "`lacks`"),
    ("to be had", "`available`"),
    ("besides", "`in addition to`"),
    ("believe", "`assume`"),
    ("believes", "`assumes`"),
    ("ought to", "`must` or `should`"),
    ("hence", "`so`"),
    ("thereby", "`by this`, or a new sentence"),
    ("whereby", "`by which`"),
    ("wherein", "`in which`"),
    ("upon", "`on`, or `when …`"),
    ("lest", "`so that … not`"),
    ("albeit", "`although`"),
    ("whilst", "`while`"),
    ("amongst", "`among`"),
    ("so to speak", "nothing"),
];

/// Text that people read or write, and code.
const EXTENSIONS: [&str; 4] = ["rs", "md", "sh", "toml"];

/// This file and the page of the rules list the words. Nothing else does.
const EXEMPT: [&str; 2] = ["CONVENTIONS.md", "xtask/src/tidy/english.rs"];

/// Text that was recorded, or that another project wrote.
const DATA: [&str; 5] = ["fixtures", "corpus", "seeds", "snapshots", "benchmarks"];

/// Finds the words in one file.
pub fn check(path: &Path, text: &str) -> Vec<Problem> {
    let is_text = path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|one| extension == *one));
    let is_data = path.components().any(|part| DATA.iter().any(|name| part.as_os_str() == *name));
    if !is_text || is_data || EXEMPT.iter().any(|exempt| path == Path::new(exempt)) {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.to_lowercase();
        for (word, instead) in INSTEAD.iter().filter(|(word, _)| contains(&line, word)) {
            problems.push(Problem::new(path, index + 1, format!("`{word}`: write {instead}")));
        }
    }
    problems
}

/// Whether the line has the word on its own. In a name, underscores stand between words; `is_none` is a method of Rust,
/// and "there is none" is plain.
fn contains(line: &str, word: &str) -> bool {
    let in_names = word.replace(' ', "_");
    let forms = if word == "is none" { vec![word] } else { vec![word, &in_names] };
    forms.into_iter().any(|word| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            let whole = ![before, after].into_iter().flatten().any(char::is_alphanumeric);
            // The user of that name, as in /etc/passwd and in a string of its own.
            let user = word == "nobody" && (after == Some(':') || (before == Some('"') && after == before));
            whole && !user && !(word == "is none" && line[..at].ends_with("there "))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_word_is_named_in_comments_texts_and_names() {
        assert_eq!(found("a.rs", "//! A.\n// Whoever asks.\n"), ["a.rs:2: `whoever`: write the noun"]);
        assert_eq!(found("a.rs", "fn whoever_asks_is_served() {}\n").len(), 1);
        assert_eq!(found("a.rs", "// A word that is none.\n").len(), 1);
        assert_eq!(found("docs/a.md", "It waits for ever.\n"), ["docs/a.md:1: `for ever`: write `forever`"]);
    }

    #[test]
    fn every_word_is_found_and_has_a_remedy() {
        for path in ["a.rs", "docs/a.md", "scripts/a.sh", "crates/a/Cargo.toml"] {
            for (word, _) in INSTEAD {
                assert_eq!(found(path, &format!("# A word that {word}.\n")).len(), 1, "{path}: {word}");
            }
        }
        let remedies = INSTEAD.map(|(word, _)| found("a.rs", &format!("// A word that {word}.\n")).join(""));
        insta::assert_snapshot!(remedies.join("\n"));
    }

    #[test]
    fn a_word_inside_another_does_not_count() {
        assert_eq!(found("a.rs", "// a new one, forever, is nonetheless pestered\n"), Vec::<String>::new());
        assert_eq!(found("a.rs", "if x.is_none() {} // If there is none.\n"), Vec::<String>::new());
        assert_eq!(found("a.rs", "user(\"nobody\"); // nobody:x:65534\n"), Vec::<String>::new());
    }

    #[test]
    fn data_and_the_rules_are_left_alone() {
        for path in ["CONVENTIONS.md", "crates/cli/src/snapshots/a.md", "Cargo.lock", "a.py"] {
            assert_eq!(found(path, "whoever\n"), Vec::<String>::new(), "{path}");
        }
    }
}
