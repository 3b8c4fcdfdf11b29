//! Saturation and the host's own conntrack limit, on real packets.

mod alone;
#[path = "../common/mod.rs"]
mod common;

canary_testbed::tests![
    outside: alone::a_full_table_is_what_is_expected,
    alone::a_table_that_does_not_fill_proves_nothing,
    alone::another_programs_limit_ends_it,
    alone::the_host_limit_is_restored_however_it_ends,
    alone::a_busy_host_is_left_alone,
    alone::not_in_a_namespace,
];
