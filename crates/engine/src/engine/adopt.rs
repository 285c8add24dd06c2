//! Taking over a VM that outlived its owner.
//!
//! ```text
//!   vms/<id>/ ──lock──▶ journal, pid ──decide──▶ Driver::reattach ──▶ settle ──▶ Parts ──▶ Vm
//! ```
//! A VM that an interrupted save left standing goes on; one that its user paused stays so. Nothing is killed when this
//! fails: the VM has no owner then, as before, and [`recover`](crate::recover) looks after it.

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

/// A VMM answers what it does and goes on in milliseconds.
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
    // Not before: dropped, a child is killed, and whatever fails above leaves the VM as it was.
    let child = Child::adopt(vmm, Cgroup::adopt(id.as_str()));
    let vm = vm::start(Parts { home: driver.home().into(), dir, child, spec, started: Instant::now(), ends });
    let vm = vm.map_err(failed)?;
    fate.remove_on_drop();
    Ok(vm)
}

/// Ends what the lost owner began, and makes the journal say what the VM does.
async fn settle(home: &Home, dir: &VmDir, monitor: &dyn Monitor) -> Result<(), AdoptError> {
    let saved = dir.journal().last().is_some_and(|last| matches!(last.state, State::Saving { .. }));
    if saved {
        // Its snapshot never became whole, and nobody will finish it.
        if let Err(error) = home.sweep_partials() {
            tracing::warn!(vm = %dir.id(), %error, "failed to sweep an interrupted snapshot");
        }
    }
    if saved && !monitor.is_running(ANSWER_DEADLINE).await? {
        monitor.resume(ANSWER_DEADLINE).await?;
    }
    let state = if monitor.is_running(ANSWER_DEADLINE).await? { State::Running } else { State::Paused };
    dir.journal().enter(state)?;
    Ok(())
}
