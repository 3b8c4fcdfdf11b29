//! The lab's own documents, versioned as those of the other programs are.

pub mod kernels;
pub mod lab;
pub mod timeline;
