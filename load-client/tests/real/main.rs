//! load-client over real sockets, in hosts of a testbed.

mod accounts;
mod churn;
mod forge;
mod hold;
mod lifecycle;
mod observe;
mod probe;
mod results;

canary_testbed::tests![
    churn::tcp_makes_exactly_what_was_asked,
    churn::own_resets_are_the_programs_own,
    churn::resets_of_what_stalled_are_the_programs_own,
    churn::http_reads_every_octet,
    churn::http_sends_no_packet_too_many,
    churn::short_and_wrong_answers_have_their_classes,
    churn::refused_is_no_busy_loop,
    churn::a_schedule_is_kept_while_refused,
    churn::what_was_never_begun_is_counted,
    churn::all_workers_or_none,
    churn::silence_is_a_stall_of_its_phase,
    churn::a_full_table_is_a_stall_of_the_connect,
    churn::half_the_syns_dropped,
    churn::resets_are_logged_in_the_known_words,
    churn::local_limits_are_counted_apart,
    churn::recovers_with_its_server,
    churn::lingers_after_its_result,
    churn::a_name_may_come_late,
    churn::sigterm_ends_within_two_seconds,
    churn::several_source_addresses,
    churn::a_pause_shows_in_an_open_loop,
    hold::holds_and_talks,
    hold::replaces_what_is_lost,
    hold::resets_and_silence_are_told_apart,
    hold::a_silent_target_proves_nothing,
    hold::the_end_waits_for_answers,
    hold::failing_handshakes_are_no_busy_loop,
    hold::connections_lost_at_once_are_no_busy_loop,
    hold::a_pause_shows_in_every_exchange_due_meanwhile,
    probe::every_pattern_survives,
    probe::a_wrong_octet_is_corruption,
    probe::every_end_has_its_name,
    probe::nothing_made_proves_nothing,
    probe::connections_that_failed_later_had_a_handshake,
    probe::an_answer_is_awaited,
    forge::uploads_through_a_node_port_need_a_drop_in_input,
    forge::what_is_passed_on_is_answered_by_the_server,
    forge::safe_segments_end_nothing,
    forge::without_the_capability_the_direction_is_untried,
    observe::sees_entries_come,
    observe::fills_a_table_and_keeps_it,
    observe::counts_invalid_segments,
    lifecycle::sigterm_in_every_phase,
    lifecycle::a_full_disk_loses_the_file_alone,
    lifecycle::a_mounted_file_is_written_to,
    lifecycle::an_unread_stdout_holds_up_nothing,
    lifecycle::sigterm_while_the_resolver_is_silent,
    results::load_results_obey_their_schema,
    results::merging_adds,
    results::merging_spans_the_parts,
    results::observe_obeys_its_schema,
    results::serve_obeys_its_schema,
];
