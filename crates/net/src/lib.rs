//! Networks of VMs: what a VM may reach, the rules that hold it to that, and the devices that connect it.
