//! Real processes and real packets, in network namespaces that each test makes.
//! They need root, `ip`, `nft`, `setpriv` and `prlimit`.

mod clients;
mod lifecycle;
mod paths;
mod rig;
