//! Arguments of `kiln lab`.

use camino::Utf8PathBuf;
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::AccelArg;

/// Run test plans: each case in a fork of a prepared VM.
///
/// A plan is a TOML file: an image, what prepares a VM of it, and suites. `kiln lab run` boots and prepares the VM once for
/// each combination of the matrix, saves it, and forks it for each suite. So no suite sees what another one did, a crash
/// costs one fork, and each report of the kernel is found on the console and named.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln lab check plan.toml\n  \
    kiln lab list plan.toml\n  \
    kiln lab run plan.toml -j 2\n  \
    kiln lab runs\n  \
    kiln lab report last --format md\n  \
    kiln lab resume last\n  \
    kiln lab schema > plan.schema.json")]
pub struct LabArgs {
    #[command(subcommand)]
    pub command: LabCommand,
}

#[derive(Debug, Subcommand)]
pub enum LabCommand {
    Check(LabCheckArgs),
    /// Print the JSON schema of plans, for editors
    Schema,
    List(LabListArgs),
    Run(LabRunArgs),
    Resume(LabResumeArgs),
    /// List runs, the newest first
    Runs(LabRunsArgs),
    Report(LabReportArgs),
}

/// Check a plan, without a VM.
///
/// Prints all problems at once, each with file, line and column, and the nearest known key. Exit code 2 if there is one.
#[derive(Debug, ClapArgs)]
pub struct LabCheckArgs {
    /// The plan; - for stdin
    pub plan: Utf8PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Which part of a plan.
#[derive(Debug, ClapArgs)]
pub struct SelectArgs {
    /// Highest level of suites to run: 1 takes minutes, 2 under an hour, 3 hours [default: the plan's]
    #[arg(long, value_name = "1|2|3", value_parser = clap::value_parser!(u8).range(1..=3))]
    pub level: Option<u8>,
    /// Only suites whose name, or `name [cell]`, matches; `*` matches any text. Repeat it for more
    #[arg(long, value_name = "GLOB")]
    pub filter: Vec<String>,
    /// Only the I-th of N equal parts, such as 1/4
    #[arg(long, value_name = "I/N", value_parser = parse_shard)]
    pub shard: Option<(u32, u32)>,
}

/// List the cells of a plan, and what runs in each.
///
/// A suite of kind `command` is one case. What cases other suites have is known only when they run.
#[derive(Debug, ClapArgs)]
pub struct LabListArgs {
    /// The plan; - for stdin
    pub plan: Utf8PathBuf,
    #[command(flatten)]
    pub select: SelectArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Run a plan.
///
/// Each cell is booted, prepared and saved once. Then each suite runs in a fork of that; one of kind `command` is one case. The verdict of a case is pass, fail,
/// crash (its kernel reported something), timeout, skip, flaky (it failed first and passed then), or error (Kiln could not
/// run it). The report is printed at the end, findings first.
///
/// Everything that happens is a line in $KILN_HOME/lab/RUN/events.jsonl. Files of failed attempts are beside it: console,
/// stdout, stderr, and the reports of the kernel.
///
/// Ctrl-C ends the run and its VMs and prints the report so far; a second one ends at once.
///
/// Exit codes: 0 all passed; 100 a case failed, crashed or timed out; 69 some cases could not be run; 2 the plan is wrong;
/// 130 interrupted.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln lab run plan.toml\n  \
    kiln lab run plan.toml -j 2 --filter 'fs*' --retry 1\n  \
    kiln lab run plan.toml --shard 1/4 --json")]
pub struct LabRunArgs {
    /// The plan; - for stdin
    pub plan: Utf8PathBuf,
    /// Cases that run at a time
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = parse_jobs)]
    pub jobs: usize,
    #[command(flatten)]
    pub select: SelectArgs,
    /// Run a case that fails up to N times more [default: the plan's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=19))]
    pub retry: Option<u32>,
    /// Stop at the first case that fails
    #[arg(long)]
    pub fail_fast: bool,
    /// Keep the files of cases that passed, too
    #[arg(long)]
    pub keep: bool,
    /// Also write reports into the directory of the run
    #[arg(long, value_name = "FORMAT", value_delimiter = ',')]
    pub report: Vec<ReportFormat>,
    /// How to run the CPUs of VMs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL", hide_short_help = true)]
    pub accel: AccelArg,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Continue a run that was interrupted or killed.
///
/// Runs the plan as it was when the run began, with the same flags. Suites that have ended keep their verdicts; a suite that
/// was running is run again. If nothing is left to run, prints the report.
///
/// Exit codes are those of `kiln lab run`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln lab resume last\n  \
    kiln lab resume 20261130-221500-3fa9c1 -j 2")]
pub struct LabResumeArgs {
    /// The run: an id, the start of one, or `last`
    pub run: String,
    /// Cases that run at a time [default: as before]
    #[arg(short, long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,
    /// Also write reports into the directory of the run
    #[arg(long, value_name = "FORMAT", value_delimiter = ',')]
    pub report: Vec<ReportFormat>,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct LabRunsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Print the report of a run, from its events.
///
/// A run that still runs or was killed has a report, too: of what has ended.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln lab report last\n  \
    kiln lab report last --format junit --out junit.xml")]
pub struct LabReportArgs {
    /// The run: an id, the start of one, or `last`
    pub run: String,
    /// The form of the report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: ReportFormat,
    /// Write it to FILE instead of stdout
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
}

/// The form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For a terminal, findings first
    Text,
    /// Markdown, at most 65 kB
    Md,
    /// JUnit XML, for CI systems
    Junit,
    /// One JSON object
    Json,
    /// A row for each case
    Csv,
}

/// Cases at a time: as many as a pool of forks holds.
fn parse_jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=kiln_engine::POOL_MAX) => Ok(jobs),
        _ => Err(format!("`{text}` is not 1 to {}", kiln_engine::POOL_MAX)),
    }
}

fn parse_shard(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('/').and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
    match parsed {
        Some((number, count)) if 1 <= number && number <= count => Ok((number, count)),
        _ => Err(format!("`{text}` is not a part such as 1/4")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_at_least_the_first_and_at_most_the_last() {
        assert_eq!(parse_shard("1/1"), Ok((1, 1)));
        assert_eq!(parse_shard("4/4"), Ok((4, 4)));
        for bad in ["", "1", "0/4", "5/4", "1/0", "-1/2", "a/b", "1/2/3"] {
            assert!(parse_shard(bad).is_err(), "{bad}");
        }
        assert!(parse_jobs("0").is_err() && parse_jobs("65").is_err() && parse_jobs("64") == Ok(64));
    }
}
