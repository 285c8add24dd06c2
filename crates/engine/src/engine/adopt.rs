//! Takes over a VM that has outlived its owner.
//!
//! ```text
//!   vms/<id>/ ──lock──▶ journal, pid ──decide──▶ Driver::reattach ──▶ settle ──▶ Parts ──▶ Vm
//! ```
//! If an interrupted save left the VM paused, it continues. If its user paused it, it stays paused. If adoption fails,
//! nothing is killed: the VM has no owner, as before, and [`recover`](crate::recover) decides about it.
//!
//! Two processes can't adopt one VM, because the lock on its directory is taken first and held as long as the VM has an
//! owner. The journal and the pid are read under that lock, so they can't change until the new owner has the VM.
//!
//! The old owner may have been killed at any point of a save. Up to the rename that publishes the snapshot, the save
//! can be taken back: the draft is swept, the guest continues, and the VM is as before. After the rename the snapshot
//! exists, and the journal shows what was to follow. If the VM was to stop or end there, `decide` does not let it be
//! adopted. If it was to continue, it is adopted only if its memory is not the snapshot's own file. Otherwise the guest
//! would write into a published snapshot.
//!
//! The CPUs may be paused by the save or by the user, and QEMU does not know which. The journal does: `Saving` is
//! written before the save pauses the CPUs, and `Paused` after a user has paused them. So a VM is resumed only if its
//! last state is `Saving` and the state before it is not `Paused`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::recover::{self, Decision};
use crate::blocking::operation;
use crate::confine::Cgroup;
use crate::driver::{AdoptError, Driver};
use crate::failpoint;
use crate::home::Home;
use crate::process::Child;
use crate::vm::{self, Monitor, Parts, Vm};
use crate::vm_dir::{Orphan, State, VmDir, VmId};

/// A VMM answers and resumes in milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Takes over a VM, see [`Engine::adopt`](crate::Engine::adopt).
pub(crate) async fn adopt(driver: Arc<dyn Driver>, id: VmId) -> Result<Vm, AdoptError> {
    operation(async move { adopt_here(&*driver, &id).await }).await
}

async fn adopt_here(driver: &dyn Driver, id: &VmId) -> Result<Vm, AdoptError> {
    let home = Home::at(driver.home());
    let dir = VmDir::reopen(&home.vms(), id)?;
    let path = dir.path().to_owned();
    let failed = |source| AdoptError::Io { path: path.clone(), source };
    let vmm = Orphan::find(dir.path()).map_err(failed)?;
    let history = dir.journal().history();
    let (Decision::Adopt, Some(vmm)) = (recover::decide(&home, dir.path(), &history, vmm.is_some()), vmm) else {
        return Err(AdoptError::NotAdoptable(id.clone()));
    };
    let spec = dir.spec().map_err(failed)?;
    let ends = driver.reattach(&dir, &spec, &vmm).await?;
    failpoint::hit("adopt.connected").map_err(|error| failed(error.into()))?;
    settle(&home, &dir, &*ends.monitor).await?;
    failpoint::hit("adopt.resumed").map_err(|error| failed(error.into()))?;

    let fate = dir.fate().clone();
    // Only now, because dropping a `Child` kills the process, and every failure above has to leave the VM as it was.
    let child = Child::adopt(vmm, Cgroup::adopt(id.as_str()));
    let vm = vm::start(Parts { home: driver.home().into(), dir, child, spec, started: Instant::now(), ends });
    let vm = vm.map_err(failed)?;
    fate.remove_on_drop();
    Ok(vm)
}

/// Finishes what the lost owner started, and records the VM's state in the journal.
async fn settle(home: &Home, dir: &VmDir, monitor: &dyn Monitor) -> Result<(), AdoptError> {
    let saved = dir.journal().last().is_some_and(|last| matches!(last.state, State::Saving { .. }));
    if saved {
        // The interrupted snapshot never became whole, and no process will finish it.
        if let Err(error) = home.sweep_partials() {
            tracing::warn!(vm = %dir.id(), %error, "failed to sweep an interrupted snapshot");
        }
    }
    let stays_paused = dir.journal().history().was_paused();
    if saved && !stays_paused && !monitor.is_running(ANSWER_DEADLINE).await? {
        monitor.resume(ANSWER_DEADLINE).await?;
    }
    let state = if monitor.is_running(ANSWER_DEADLINE).await? { State::Running } else { State::Paused };
    dir.journal().enter(state)?;
    Ok(())
}
