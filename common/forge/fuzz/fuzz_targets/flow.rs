//! The state machine under arbitrary segments; the rules are those of the
//! property test.
#![no_main]

#[path = "../../tests/support/drive.rs"]
mod drive;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(broken) = drive::drive(bytes) {
        panic!("{broken}");
    }
});
