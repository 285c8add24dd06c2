//! The file of a plan: read, checked, and its problems printed.

use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_lab::plan::{PLAN_BYTES_MAX, Plan, Problem};
use serde::Serialize;

use crate::args::lab::LabCheckArgs;
use crate::failure::{Failure, USAGE};
use crate::output::{plain, print, print_json};

/// A plan that is right.
#[derive(Debug)]
pub(super) struct PlanFile {
    pub(super) plan: Plan,
    pub(super) text: String,
    /// Its directory. Paths in the plan are relative to it.
    pub(super) directory: Utf8PathBuf,
}

/// A problem as `--json` prints it.
#[derive(Debug, Serialize)]
struct FileProblem<'a> {
    file: &'a Utf8Path,
    #[serde(flatten)]
    problem: &'a Problem,
}

/// Runs `kiln lab check`.
pub(super) fn check(args: &LabCheckArgs) -> Result<u8, Failure> {
    let text = read_text(&args.plan)?;
    let (plan, problems) = match Plan::parse(&text) {
        Ok(plan) => (Some(plan), Vec::new()),
        Err(problems) => (None, problems),
    };
    if args.json {
        let problems: Vec<_> = problems.iter().map(|problem| FileProblem { file: &args.plan, problem }).collect();
        print_json(&problems)?;
    } else if let Some(plan) = &plan {
        print(format_args!("{}: {}", plain(args.plan.as_str()), summary(plan)))?;
    } else {
        for problem in &problems {
            print(line(&args.plan, problem))?;
        }
    }
    Ok(if problems.is_empty() { 0 } else { USAGE })
}

/// Reads a plan that is to be run. The failure names all its problems.
pub(super) fn read(path: &Utf8Path) -> Result<PlanFile, Failure> {
    let text = read_text(path)?;
    let directory = match path.parent() {
        Some(parent) if path != "-" && !parent.as_str().is_empty() => parent.to_owned(),
        _ => Utf8PathBuf::from("."),
    };
    let directory = directory.canonicalize_utf8().map_err(|error| unreadable(path, error))?;
    parse(text, path, directory)
}

/// Checks the text of a plan.
pub(super) fn parse(text: String, path: &Utf8Path, directory: Utf8PathBuf) -> Result<PlanFile, Failure> {
    match Plan::parse(&text) {
        Ok(plan) => Ok(PlanFile { plan, text, directory }),
        Err(problems) => {
            let count = problems.len();
            let lines: Vec<_> = problems.iter().map(|problem| line(path, problem)).collect();
            let words =
                format!("the plan has {count} problem{}:\n{}", if count == 1 { "" } else { "s" }, lines.join("\n"));
            Err(Failure::words(USAGE, words).hint("kiln lab schema prints what a plan may have"))
        }
    }
}

fn read_text(path: &Utf8Path) -> Result<String, Failure> {
    // One byte more than the largest plan, so that the reader of plans refuses what is cut here.
    let bound = PLAN_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let read = if path == "-" {
        std::io::stdin().lock().take(bound).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(bound).read_to_end(&mut bytes))
    };
    read.map_err(|error| unreadable(path, error))?;
    String::from_utf8(bytes).map_err(|_| Failure::words(USAGE, format!("the plan `{path}` is not UTF-8 text")))
}

fn unreadable(path: &Utf8Path, error: std::io::Error) -> Failure {
    Failure::new(USAGE, anyhow::Error::new(error).context(format!("failed to read the plan `{path}`")))
}

/// `plan.toml:4:1: vm: message (hint)`
fn line(path: &Utf8Path, problem: &Problem) -> String {
    plain(&format!("{path}:{problem}"))
}

/// What a plan has.
fn summary(plan: &Plan) -> String {
    let counted = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    format!("{} in {}", counted(plan.suites.len(), "suite"), counted(plan.cells().len(), "cell"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_of_a_plan_are_named_with_their_places() {
        let text = "[plan]\nname = 'x'\n[vm]\nimagee = 'mini'\ncpus = 0\n";
        let failure = parse(text.into(), "dir/plan.toml".into(), ".".into()).expect_err("is wrong");
        insta::assert_snapshot!(format!("{}\nhint: {}", failure.message(), failure.hint_text().unwrap_or_default()));
        let plan = "[plan]\nname = 'x'\n[matrix]\nfs = ['a', 'b']\n[[suite]]\nkind = 'tap'\nname = 'x'\nrun = 'x'\n";
        assert_eq!(summary(&Plan::parse(plan).expect("is right")), "1 suite in 2 cells");
    }
}
