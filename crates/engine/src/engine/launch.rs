//! Starts a VM from its spec.

use std::sync::Arc;

use super::recover;
use crate::blocking::operation;
use crate::driver::{Driver, LaunchError};
use crate::spec::{Acceleration, VmSpec};
use crate::vm::Vm;

/// Checks a spec, recovers VMs without an owner, and decides what runs the spec's instructions.
pub(super) async fn decide(driver: Arc<dyn Driver>, spec: VmSpec) -> Result<Acceleration, LaunchError> {
    operation(async move { decide_here(&*driver, &spec).await }).await
}

async fn decide_here(driver: &dyn Driver, spec: &VmSpec) -> Result<Acceleration, LaunchError> {
    driver.validate(spec)?;
    recover::once(driver).await;
    driver.decide(spec).await
}

pub(super) async fn launch(driver: Arc<dyn Driver>, spec: VmSpec) -> Result<Vm, LaunchError> {
    operation(async move {
        let acceleration = decide_here(&*driver, &spec).await?;
        driver.boot(&spec, acceleration).await
    })
    .await
}
