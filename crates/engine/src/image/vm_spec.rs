//! From an image to the spec of a VM.

use super::store::Image;
use crate::spec::VmSpec;

/// An image does not have a module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image `{image}` has no module `{module}`")]
pub struct NoModule {
    /// The image's name.
    pub image: String,
    /// The missing module.
    pub module: String,
    /// The modules of the image.
    pub has: Vec<String>,
}

impl Image {
    /// A VM of this image, with the defaults of [`VmSpec`].
    ///
    /// ```no_run
    /// # fn example(image: &kiln_engine::image::Image) {
    /// use kiln_engine::VmSpec;
    ///
    /// let spec = VmSpec { memory_mib: 512, cpus: 2, ..image.vm_spec() };
    /// # }
    /// ```
    pub fn vm_spec(&self) -> VmSpec {
        VmSpec { cmdline: self.cmdline.clone(), ..VmSpec::new(&self.kernel, &self.initramfs) }
    }

    /// Refuses modules that the image does not have. The guest itself would report them only on its console.
    ///
    /// # Errors
    /// [`NoModule`] with the first missing one.
    pub fn check_modules(&self, wanted: &[String]) -> Result<(), NoModule> {
        // The kernel treats both characters as the same.
        let plain = |name: &str| name.replace('-', "_");
        match wanted.iter().find(|wanted| !self.modules.iter().any(|module| plain(module) == plain(wanted))) {
            None => Ok(()),
            Some(module) => {
                Err(NoModule { image: self.name.clone(), module: module.clone(), has: self.modules.clone() })
            }
        }
    }
}
