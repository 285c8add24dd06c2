//! Finds the least memory with which an image boots, by booting it, once for each image.
//!
//! ```text
//!   a guess ──▶ boots? ── yes ─▶ one step less, then half-way ─▶ … ─▶ the least that boots + HEADROOM ─▶ image.json
//!                      └─ no ──▶ two steps more
//! ```
//! The need can't be computed from the sizes of a kernel and an initramfs: the kernel unpacks one into memory while it
//! still holds the other, and fails without output if both do not fit.

use std::time::Duration;

use kiln_wire::{ExecRequest, Text};
use tokio::time::{Instant, timeout};

use super::build::BuildStep;
use super::error::ImageError;
use super::store::{Image, ImageStore};
use crate::engine::Engine;
use crate::guest::{BootError, Guest, Watch};
use crate::spec::{CPUS_MAX, MEMORY_MIB_MIN, VmSpec};

/// The step between the sizes that are tried.
const STEP_MIB: u64 = 8;
/// A guest gets this much beside the least that boots: boots differ, and a command needs some memory.
const HEADROOM_MIB: u64 = STEP_MIB;
/// The memory of each CPU beyond the first.
const EACH_CPU_MIB: u64 = 1;
/// The need of `mini` with Debian's 6.1. Another image is found from it in a few boots.
const GUESS_MIB: u64 = 96;
/// If an image does not boot with this much, it has another problem.
const TRIED_MIB_MAX: u64 = 512;
/// A boot that takes longer counts as failed, which can only make the result larger.
const BOOT_DEADLINE: Duration = Duration::from_secs(45);
/// After the first boot that succeeds, others get so many times its time. A kernel without memory searches for some for
/// a minute before it gives up.
const BOOT_TIMES_MAX: u32 = 3;
/// But at least this long, which a busy host may need.
const BOOT_DEADLINE_MIN: Duration = Duration::from_secs(10);
/// For a trivial command after the boot.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// The assumed need of an image that was not measured, with one CPU: twice that of `mini`. Even with the most CPUs it
/// is not more than a VM has by default.
pub const UNMEASURED_MIB: u64 = 192;

/// An image does not boot with that memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image `{image}` {} {needed_mib} MiB of memory with {cpus} {}, not {memory_mib} MiB", need_words(*is_measured), cpu_words(*cpus))]
pub struct TooLittleMemory {
    /// The image's name.
    pub image: String,
    /// The requested memory.
    pub memory_mib: u64,
    /// The requested CPUs.
    pub cpus: u32,
    /// The least that it boots with.
    pub needed_mib: u64,
    /// Whether that was measured. If not, it is assumed, and the image may need less.
    pub is_measured: bool,
}

fn need_words(is_measured: bool) -> &'static str {
    if is_measured { "needs" } else { "was not measured and is assumed to need" }
}

fn cpu_words(cpus: u32) -> &'static str {
    if cpus == 1 { "CPU" } else { "CPUs" }
}

impl Image {
    /// The least memory with which the image boots on one CPU, or [`UNMEASURED_MIB`].
    pub fn memory_mib_needed(&self) -> u64 {
        self.memory_mib_min.unwrap_or(UNMEASURED_MIB)
    }

    /// Refuses a size with which the image does not boot or, if it was not measured, may not boot. [`VmSpec::validate`]
    /// refuses a number of CPUs that no VM has.
    ///
    /// # Errors
    /// [`TooLittleMemory`] with the least that is accepted.
    pub fn check_memory(&self, memory_mib: u64, cpus: u32) -> Result<(), TooLittleMemory> {
        let more = u64::from(cpus.saturating_sub(1)) * EACH_CPU_MIB;
        let needed_mib = self.memory_mib_needed().saturating_add(more);
        if memory_mib >= needed_mib || cpus > CPUS_MAX {
            return Ok(());
        }
        let is_measured = self.memory_mib_min.is_some();
        Err(TooLittleMemory { image: self.name.clone(), memory_mib, cpus, needed_mib, is_measured })
    }
}

impl ImageStore {
    /// Finds the least memory with which an image boots, and writes it into the image's manifest. If the manifest has
    /// it already, does nothing. Takes several boots, which are seconds under TCG.
    ///
    /// # Errors
    /// [`ImageError::DoesNotBoot`]; or the manifest can't be written.
    pub async fn measure_memory(
        &self,
        engine: &dyn Engine,
        image: Image,
        progress: &mut (dyn FnMut(BuildStep) + Send),
    ) -> Result<Image, ImageError> {
        if image.memory_mib_min.is_some() {
            return Ok(image);
        }
        let guess = self.measured_before(&image.name)?.map_or(GUESS_MIB, |least| least.saturating_sub(HEADROOM_MIB));
        let mut search = Search::from(guess);
        let (mut problem, mut deadline) = (String::new(), BOOT_DEADLINE);
        while let Some(memory_mib) = search.next {
            progress(BuildStep::Booting { memory_mib });
            let started = Instant::now();
            let outcome = boots(engine, VmSpec { memory_mib, ..image.vm_spec() }, deadline).await;
            search.tried(outcome.is_ok());
            match outcome {
                Ok(()) => deadline = deadline.min((started.elapsed() * BOOT_TIMES_MAX).max(BOOT_DEADLINE_MIN)),
                Err(error) => {
                    tracing::debug!(memory_mib, error, "an image does not boot with so little memory");
                    problem = error;
                }
            }
        }
        match search.boots {
            Some(least) => self.set_memory_min(&image, least + HEADROOM_MIB),
            None => Err(ImageError::DoesNotBoot { image: image.name, memory_mib: TRIED_MIB_MAX, problem }),
        }
    }
}

/// Returns `Ok` if a guest comes up and runs a command, otherwise the reason.
async fn boots(engine: &dyn Engine, spec: VmSpec, deadline: Duration) -> Result<(), String> {
    let guest = Guest::start(engine, spec, deadline, Watch::default()).await.map_err(|error| match error {
        // The kernel's last output does not help here.
        BootError::Link { source, .. } => source.to_string(),
        other => other.to_string(),
    })?;
    let request = ExecRequest { argv: vec![Text::from("true")], ..ExecRequest::default() };
    let ran = timeout(COMMAND_DEADLINE, guest.link.run(request, b"", 0)).await;
    guest.vm.kill().await;
    match ran {
        Ok(Ok(output)) if output.exited.status.shell_code() == 0 => Ok(()),
        Ok(Ok(output)) => Err(format!("`true` ended with {}", output.exited.status.shell_code())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("`true` did not end within {COMMAND_DEADLINE:?}")),
    }
}

/// The next size to try.
#[derive(Debug)]
struct Search {
    next: Option<u64>,
    /// The least that has booted.
    boots: Option<u64>,
    /// The most that has failed.
    fails: u64,
}

impl Search {
    fn from(guess: u64) -> Self {
        let guess = guess.next_multiple_of(STEP_MIB).clamp(MEMORY_MIB_MIN, TRIED_MIB_MAX);
        Self { next: Some(guess), boots: None, fails: MEMORY_MIB_MIN - STEP_MIB }
    }

    /// Records the outcome of the last attempt.
    fn tried(&mut self, booted: bool) {
        let Some(size) = self.next else { return };
        let first = self.boots.is_none();
        if booted {
            self.boots = Some(size);
        } else {
            self.fails = size;
        }
        self.next = match self.boots {
            Some(least) if least - self.fails <= STEP_MIB => None,
            // A good guess is the least, which one more boot proves.
            Some(least) if first => Some(least - STEP_MIB),
            Some(least) => {
                Some((self.fails + (least - self.fails) / 2).next_multiple_of(STEP_MIB).min(least - STEP_MIB))
            }
            None if size >= TRIED_MIB_MAX => None,
            None => Some((size + 2 * STEP_MIB).min(TRIED_MIB_MAX)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that is found from a guess, and the number of boots.
    fn search(guess: u64, needs: u64) -> (Option<u64>, usize) {
        let (mut search, mut boots) = (Search::from(guess), 0);
        while let Some(size) = search.next {
            assert!((MEMORY_MIB_MIN..=TRIED_MIB_MAX).contains(&size), "{size}");
            search.tried(size >= needs);
            boots += 1;
            assert!(boots <= 40, "it does not end");
        }
        (search.boots, boots)
    }

    #[test]
    fn the_least_that_boots_is_found_from_any_guess() {
        for needs in (0..=TRIED_MIB_MAX).step_by(3) {
            let least = needs.next_multiple_of(STEP_MIB).max(MEMORY_MIB_MIN);
            for guess in [0, 96, 104, 300, 10_000] {
                assert_eq!(search(guess, needs).0, Some(least), "{needs} from {guess}");
            }
            assert!(search(least, needs).1 <= 2, "a good guess takes two boots: {needs}");
        }
        assert_eq!(search(96, TRIED_MIB_MAX + 1).0, None);
    }
}
