//! A child process that does not outlive its owner.

use std::process::Child;

/// Kills its child, by its own id, when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
