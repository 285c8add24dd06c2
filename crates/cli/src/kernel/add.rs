//! `kiln kernel add`.

use kiln_engine::kernels::{AddKernel, AddStep, Kernel, KernelStore, Missing};
use owo_colors::OwoColorize as _;

use super::cancel;
use super::list::Listed;
use crate::args::kernel::KernelAddArgs;
use crate::failure::{Failure, USAGE};
use crate::image::{home, kernel_failure};
use crate::output::{Progress, plain, print, print_json, say};

/// Runs `kiln kernel add`.
pub(super) fn add(args: &KernelAddArgs) -> Result<u8, Failure> {
    let input = args.input().map_err(|problem| Failure::words(USAGE, problem))?;
    cancel::on_interrupt();
    let store = KernelStore::new(&home()?);
    let progress = Progress::long(format!("adding {}", args.source), args.json);
    let mut step = |step: AddStep| progress.say(format!("adding {}: {step}", args.source));
    let request = AddKernel {
        input,
        modules: args.modules.clone(),
        config: args.config.clone(),
        name: args.name.clone(),
        source: None,
        build_key: None,
        progress: &mut step,
    };
    let added = store.add(request).map_err(|error| match error.is_interrupt() {
        true => cancel::interrupted(),
        false => kernel_failure(error),
    })?;
    drop(progress);
    tell(&store, &added.kernel, added.name.as_str(), args.json)
}

/// Prints a kernel that was added, with what it lacks.
pub(super) fn tell(store: &KernelStore, kernel: &Kernel, name: &str, json: bool) -> Result<u8, Failure> {
    if json {
        print_json(&Listed::of(store, kernel)?)?;
        return Ok(0);
    }
    let count = kernel.module_count;
    let modules = if count == 0 { "no modules".to_owned() } else { format!("{count} modules") };
    say(format_args!("kernel {}: Linux {}, {modules}", plain(name), plain(&kernel.release)));
    for line in lacks(&kernel.missing) {
        say(format_args!("{} {line}", "kiln:".yellow().bold()));
    }
    print(&kernel.digest)?;
    Ok(0)
}

/// A line for each purpose that a kernel lacks something for.
fn lacks(missing: &[Missing]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut last = None;
    for one in missing {
        match lines.last_mut().filter(|_| last == Some(one.purpose)) {
            Some(line) => line.push_str(&format!(", {one}")),
            None => lines.push(format!("it lacks what Kiln needs {}: {one}", one.purpose)),
        }
        last = Some(one.purpose);
    }
    lines
}
