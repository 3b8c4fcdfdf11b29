//! Real processes and real packets: boom-server in the hosts of a testbed.

mod clients;
mod lifecycle;
mod paths;

canary_testbed::tests![
    paths::matrix_ipv4,
    paths::matrix_ipv6,
    paths::an_overshoot_kills_later,
    paths::a_port_used_again_is_another_connection,
    paths::syn_cookies_hide_no_connection,
    paths::connections_to_other_addresses_are_let_alone,
    paths::connections_of_another_process_are_let_alone,
    paths::a_foreign_pod_ip_is_told,
    paths::a_pod_address_is_not_translated,
    clients::windows_scaled_by_14,
    clients::windows_not_scaled,
    clients::no_timestamps,
    clients::no_selective_acknowledgment,
    clients::retransmitted_handshakes_are_judged,
    clients::a_client_that_closes_first_is_let_alone,
    clients::leaks_to_clients_that_close_at_once_are_seen,
    clients::clients_that_close_by_reset_leak_nothing,
    clients::a_stepped_clock_is_told,
    lifecycle::a_reset_ends_it_with_10,
    lifecycle::no_error_without_a_leak,
    lifecycle::signals_end_it_with_a_result,
    lifecycle::nothing_proved_is_11,
    lifecycle::capabilities_are_gone_on_every_thread,
    lifecycle::a_missing_capability_is_told,
    lifecycle::a_port_in_use_is_told,
    lifecycle::an_impossible_output_is_refused,
    lifecycle::an_output_in_anothers_directory_is_refused,
    lifecycle::a_steady_load_is_no_doubt,
    lifecycle::it_listens_last,
    lifecycle::what_is_not_accepted_is_a_doubt,
    lifecycle::a_full_disk_is_in_the_result,
    lifecycle::an_unread_stdout_holds_up_nothing,
    lifecycle::it_survives_running_out_of_file_descriptors,
    lifecycle::the_admin_port_tells,
    lifecycle::bad_segments_change_nothing,
    lifecycle::bad_ipv6_segments_change_nothing,
];
