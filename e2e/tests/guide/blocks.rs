//! Finds the shell blocks of a page and makes scripts of them.

/// The marks of comments before a block.
const NOT_RUN: &str = "not run:";
const SKIP: &str = "skip ";
const FIRST: &str = "first:";
/// The start of a comment with a line's expected exit code.
const EXIT_CODE: &str = "exit code ";
const INDENT: &str = "    ";

/// A block of a page.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The number of its first line, from 1.
    pub line: usize,
    pub what: What,
}

/// Whether a block is run, and with what.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    Run(String),
    NotRun(String),
}

/// The blocks of a page in order; an error names what is wrong with a mark.
pub fn blocks(page: &str) -> Result<Vec<Block>, String> {
    let lines: Vec<&str> = page.lines().collect();
    let (mut found, mut marks, mut index) = (Vec::new(), Vec::new(), 0);
    while index < lines.len() {
        let line = lines[index];
        if let Some(mark) = line.strip_prefix("<!--").and_then(|rest| rest.trim_end().strip_suffix("-->")) {
            marks.push(mark.trim());
            index += 1;
        } else if line.starts_with("```") {
            let end = (index + 1..lines.len()).find(|&end| lines[end].starts_with("```")).unwrap_or(lines.len());
            found.push(block(index + 2, &lines[index + 1..end], &marks)?);
            (index, marks) = (end + 1, Vec::new());
        } else if line.starts_with(INDENT) && (index == 0 || lines[index - 1].is_empty() || !marks.is_empty()) {
            let is_inside = |line: &str| line.is_empty() || line.starts_with(INDENT);
            let end = (index..lines.len()).find(|&end| !is_inside(lines[end])).unwrap_or(lines.len());
            let text: Vec<&str> =
                lines[index..end].iter().map(|line| line.strip_prefix(INDENT).unwrap_or("")).collect();
            found.push(block(index + 1, &text, &marks)?);
            (index, marks) = (end, Vec::new());
        } else {
            if !line.is_empty() {
                marks.clear();
            }
            index += 1;
        }
    }
    Ok(found)
}

fn block(line: usize, text: &[&str], marks: &[&str]) -> Result<Block, String> {
    let (mut script, mut skipped) = (String::new(), Vec::new());
    for mark in marks {
        if let Some(reason) = mark.strip_prefix(NOT_RUN) {
            return Ok(Block { line, what: What::NotRun(reason_of(reason, line)?) });
        } else if let Some(first) = mark.strip_prefix(FIRST) {
            script.push_str(first.trim());
            script.push('\n');
        } else if let Some((start, reason)) = mark.strip_prefix(SKIP).and_then(|rest| rest.split_once(':')) {
            reason_of(reason, line)?;
            skipped.push(start);
        } else if !mark.is_empty() {
            return Err(format!("line {line}: `{mark}` is no mark"));
        }
    }
    let shows_output = text.first().is_some_and(|first| first.starts_with("$ "));
    let commands = text.iter().filter_map(|row| if shows_output { row.strip_prefix("$ ") } else { Some(row) });
    let commands: Vec<&str> = commands.collect();
    for start in &skipped {
        if !commands.iter().any(|command| command.starts_with(start)) {
            return Err(format!("line {line}: no line begins with `{start}`"));
        }
    }
    for command in commands.iter().filter(|command| !skipped.iter().any(|start| command.starts_with(start))) {
        script.push_str(&checked(command));
        script.push('\n');
    }
    Ok(Block { line, what: What::Run(script) })
}

fn reason_of(text: &str, line: usize) -> Result<String, String> {
    match text.trim() {
        "" => Err(format!("line {line}: a block that is not run needs a reason")),
        reason => Ok(reason.to_owned()),
    }
}

/// A line whose comment names an exit code, made to fail for any other.
fn checked(command: &str) -> String {
    let expected = command.split_once(" # ").and_then(|(words, comment)| {
        let digits = comment.split_once(EXIT_CODE)?.1;
        let end = digits.find(|end: char| !end.is_ascii_digit()).unwrap_or(digits.len());
        Some((words.trim_end(), &digits[..end]))
    });
    match expected {
        Some((words, code)) => {
            format!(
                "code=0; {words} || code=$?; [ $code = {code} ] || {{ echo \"exit code $code, not {code}\" >&2; exit 1; }}"
            )
        }
        None => command.to_owned(),
    }
}

#[test]
fn blocks_are_found_with_their_marks() {
    let page = "# A page\n\n    kiln a\n    kiln b   # what; exit code 3\n\n    kiln c\n\ntext\n    not a block\n\n\
                <!-- not run: it is JSON -->\n    {}\n\n<!-- first: echo > file -->\n<!-- skip kiln x: takes long -->\n\n\
                \x20   $ kiln d\n    out\n    $ kiln x y\n\n```\nkiln e\n```\n";
    let run = |line, script: &str| Block { line, what: What::Run(script.to_owned()) };
    let check = "code=0; kiln b || code=$?; [ $code = 3 ] || { echo \"exit code $code, not 3\" >&2; exit 1; }";
    let expected = [
        run(3, &format!("kiln a\n{check}\n\nkiln c\n\n")),
        Block { line: 12, what: What::NotRun("it is JSON".into()) },
        run(17, "echo > file\nkiln d\n"),
        run(22, "kiln e\n"),
    ];
    assert_eq!(blocks(page), Ok(expected.into()));
}

#[test]
fn a_mark_that_is_wrong_is_named() {
    for (page, words) in [
        ("<!-- not run: -->\n    x\n", "needs a reason"),
        ("<!-- skip y: long -->\n    x\n", "no line begins with `y`"),
        ("<!-- sikp y: long -->\n    x\n", "is no mark"),
    ] {
        assert!(blocks(page).is_err_and(|error| error.contains(words)), "{page}");
    }
}
