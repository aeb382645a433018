//! What hostile clients try, and which tests show that it fails.
//!
//! Where a case needs a whole server it is tested here, in the files beside this one; where a
//! parser, the engine or a device decides it alone, it is tested there. A test of this file checks
//! that each test of the list exists.
//!
//! 1. A buffer at a pointer of the client's own: `bad_allocations_are_refused_and_leave_nothing`,
//!    `buffer_at_a_pointer_of_the_clients_is_refused`.
//! 2. A view past its base, by a byte and by far: `view_outside_of_its_base_is_refused`,
//!    `view_past_its_base_reads_and_writes_nothing`.
//! 3. An offset and a size whose sum wraps around: `view_outside_of_its_base_is_refused`,
//!    `view_past_its_base_reads_and_writes_nothing`.
//! 4. A buffer of no bytes, of 2^63, of more than one may have:
//!    `bad_allocations_are_refused_and_leave_nothing`, `buffer_of_no_or_too_many_bytes_is_refused`,
//!    `session_past_its_memory_is_refused_more_until_it_frees_some`.
//! 5. A copy between buffers of unequal sizes; one onto itself:
//!    `transfer_of_unequal_buffers_is_refused`,
//!    `transfer_within_a_buffer_moves_as_if_through_another`.
//! 6. A device that there is not: `unknown_names_are_refused_with_the_name`,
//!    `device_that_there_is_not_is_refused`.
//! 7. Kernels with the wrong number of arguments; sizes of 0, below 0 and of 2^32:
//!    `launch_with_bad_numbers_is_refused`,
//!    `launch_with_the_wrong_arguments_harms_only_its_session`.
//! 8. Memory and programs freed under a graph that uses them:
//!    `graph_runs_after_its_buffers_and_programs_are_freed`,
//!    `graph_runs_on_what_its_client_has_freed`.
//! 9. What is freed twice, made twice or was never made: `double_free_is_refused`,
//!    `unknown_names_are_refused_with_the_name`, `program_allocated_twice_lives_until_freed_twice`.
//! 10. A key to remote memory, used after its buffer was freed:
//!     `keys_end_with_their_buffer_and_with_the_session`,
//!     `buffer_that_was_freed_is_not_written_by_its_old_key`,
//!     `forged_stale_and_foreign_keys_reach_no_memory`, and where there is no RDMA
//!     `rdma_that_there_is_not_is_refused`.
//! 11. Sessions by the thousand that are never freed:
//!     `identity_has_a_number_of_sessions_over_all_connections`,
//!     `sessions_never_freed_are_bounded_and_end_with_their_connection`.
//! 12. A client killed in mid-upload, in mid-graph, in the middle of a remote write:
//!     `client_killed_in_mid_upload_leaves_nothing_behind`,
//!     `client_killed_in_mid_graph_leaves_nothing_behind`,
//!     `client_that_goes_in_mid_output_leaves_nothing_behind`,
//!     `peer_that_dies_in_the_middle_is_reported_and_leaves_nothing`,
//!     `server_that_dies_before_what_lands_is_copied_leaves_its_memory`.
//! 13. Another identity's session: `session_of_another_identity_looks_like_one_that_is_not_there`.
//! 14. Freed memory, read by the next session:
//!     `memory_of_a_new_device_is_zero_whatever_an_old_one_left`, `fresh_memory_reads_as_zero`,
//!     `new_buffer_holds_nothing_of_another_session`.
//! 15. Keys to remote memory of somebody else's buffer:
//!     `keys_to_a_buffer_of_another_identity_are_not_given_out`,
//!     `server_is_written_only_with_keys_that_it_gave_and_that_still_hold`.
//! 16. A session key whose host is some other machine:
//!     `host_of_a_session_key_is_never_connected_to`.
//! 17. A queue pair to any address: `address_that_nobody_has_is_an_error_and_leaves_nothing`,
//!     `peers_of_one_identity_are_bounded`, `rdma_that_there_is_not_is_refused`.
//! 18. What others have uploaded, found out by its hash: `blob_is_known_to_its_own_batch_only`,
//!     `program_of_another_identity_answers_as_a_new_one_does`.
//! 19. Bytes that are not what their name says:
//!     `names_that_are_said_to_be_blake3_are_always_checked`,
//!     `names_are_checked_as_sha256_where_the_server_is_told_to`,
//!     `blob_is_known_to_its_own_batch_only`.
//! 20. Two blobs of one name: `blob_named_twice_is_refused`.
//! 21. A compiled program cut short by a full disk:
//!     `cache_entry_cut_or_altered_is_a_miss_and_is_replaced`,
//!     `cache_that_cannot_be_used_fails_no_compile`.
//! 22. Names that look like paths: `names_that_look_like_paths_are_names`.
//! 23. A blob of 2^64-1 bytes: `blob_that_exceeds_a_limit_is_refused_at_its_start`,
//!     `blob_of_impossible_length_is_refused_at_once`.
//! 24. A body that ends within a blob's header: `body_cut_short_is_refused`,
//!     `body_that_ends_in_a_header_is_refused`.
//! 25. Brackets a million deep: `text_of_hostile_size_is_refused`,
//!     `text_of_monstrous_shape_is_refused_and_the_connection_stays`.
//! 26. Numbers of a million digits: `text_of_hostile_size_is_refused`,
//!     `text_of_monstrous_shape_is_refused_and_the_connection_stays`.
//! 27. Classes, fields and attributes that there are not, or twice:
//!     `error_names_command_field_and_place`, `text_that_names_what_there_is_not_is_refused`.
//! 28. Negative numbers where they make no sense: `error_names_command_field_and_place`,
//!     `text_that_names_what_there_is_not_is_refused`.
//! 29. Bytes that are no UTF-8, NUL, lone surrogates:
//!     `text_with_bad_bytes_is_refused_where_they_are`,
//!     `text_that_names_what_there_is_not_is_refused`.
//! 30. Ten million tiny commands: `batch_of_too_many_commands_is_refused`,
//!     `text_of_monstrous_shape_is_refused_and_the_connection_stays`.
//! 31. A command that fails in the middle: `failing_command_leaves_the_ones_after_it_running`,
//!     `failure_in_a_batch_names_command_and_count_and_lets_the_rest_run`.
//! 32. Waiting for what nobody sets: `wait_for_an_event_that_nobody_sets_ends_with_an_error`,
//!     `wait_for_what_nobody_sets_ends_in_time`.
//! 33. A flood of events: `events_beyond_the_limit_are_refused_until_some_are_waited_for`.
//! 34. Two servers that wait for each other: `wait_for_what_nobody_sets_ends_in_time`,
//!     `host_of_a_session_key_is_never_connected_to`,
//!     `servers_that_wait_for_each_other_end_in_time_and_serve_on`,
//!     `servers_whose_staging_memory_is_full_copy_to_each_other_all_the_same`.
//! 35. Sources that include files: `source_that_includes_a_file_learns_nothing`,
//!     `source_that_reads_files_is_refused_before_the_compiler`,
//!     `source_that_reads_files_is_refused_before_the_library`,
//!     `program_reads_no_file_outside_its_rights`.
//! 36. Sources that embed files, are giant, take for ever:
//!     `source_that_reads_files_is_refused_before_the_compiler`,
//!     `source_longer_than_limit_is_refused`,
//!     `source_with_giant_object_fails_and_costs_bounded_memory`,
//!     `source_that_takes_for_ever_is_killed_with_all_its_processes`,
//!     `source_too_long_is_refused_and_the_connection_stays`.
//! 37. Malformed PTX, machine code, objects:
//!     `text_with_debugging_information_or_strange_bytes_is_refused`,
//!     `object_cut_anywhere_never_crashes_the_loader`,
//!     `object_with_flipped_bits_never_crashes_the_loader`,
//!     `program_that_cannot_be_loaded_says_why`.
//! 38. Kernels that do not end: `endless_kernel_costs_its_own_session_only`,
//!     `endless_kernel_is_ended_by_the_watchdog`.
//! 39. Kernels that fault: `kernel_writing_to_address_0_costs_its_own_session_only`,
//!     `kernel_calling_open_costs_its_own_session_only`, `stack_overflow_is_a_memory_fault`,
//!     `division_by_zero_is_an_arithmetic_fault`.
//! 40. Requests whose ends two parsers would see in different places:
//!     `lengths_of_the_table_end_as_it_says`, `chunks_of_the_table_end_as_it_says`,
//!     `fields_of_the_table_end_as_it_says`.
//! 41. A flood of chunks of six bytes: `extensions_of_many_small_chunks_are_bounded_together`,
//!     `flood_of_tiny_chunks_costs_no_memory`.
//! 42. Terabytes announced, then silence: `terabytes_announced_cost_nothing`.
//! 43. Slow heads, slow bodies, slow readers:
//!     `slow_requests_are_told_so_and_idle_connections_are_left_alone`,
//!     `client_that_pauses_in_a_long_blob_is_refused`,
//!     `client_that_reads_nothing_of_its_reply_is_given_up`.
//! 44. One that idles or is greedy at others' cost:
//!     `small_calls_beside_a_full_speed_upload_are_not_starved`,
//!     `connection_of_another_identity_does_not_stand_behind_many`,
//!     `bodies_of_one_identity_leave_room_for_those_of_another`,
//!     `identity_past_its_connections_is_told_so_before_its_body`,
//!     `unknown_peer_that_says_nothing_is_not_kept`.
//! 45. Paths, addresses and others' data in errors:
//!     `source_with_error_is_rejected_with_its_place_and_no_path_of_the_server`,
//!     `errors_tell_nothing_of_the_server_or_of_others`.

mod support;

#[path = "hostile/commands.rs"]
mod commands;
#[path = "hostile/requests.rs"]
mod requests;
#[path = "hostile/tenants.rs"]
mod tenants;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// All tests of the repository, by name.
fn tests_there_are() -> BTreeSet<String> {
    let root = support::place::sources();
    let mut folders: Vec<PathBuf> = vec![root.join("src"), root.join("tests")];
    let mut tests = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("it is listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source is text");
                let after = text.split("#[test]").skip(1);
                let names = after.filter_map(|rest| rest.split_once("fn ")?.1.split_once('('));
                tests.extend(names.map(|(name, _)| name.to_owned()));
            }
        }
    }
    tests
}

#[test]
fn every_test_of_the_list_exists() {
    let there_are = tests_there_are();
    let docs = include_str!("hostile.rs").lines().map_while(|line| line.strip_prefix("//!"));
    let docs = docs.collect::<Vec<_>>().join("\n");
    let mut rest = &docs[..];
    for number in 1..=45 {
        let begin = format!("\n {number}. ");
        let (_, from) = rest.split_once(&begin).unwrap_or_else(|| panic!("no case {number}"));
        let case = from.split_once(&format!("\n {}. ", number + 1)).map_or(from, |(case, _)| case);
        let names: Vec<&str> = case.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "case {number} has no tests");
        for name in names {
            assert!(there_are.contains(name), "case {number}: there is no test {name}");
        }
        rest = from;
    }
}
