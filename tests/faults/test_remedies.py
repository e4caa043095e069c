"""Each message that names a way out has a test that goes it, in test_remedies_*.py or in another file."""
from tests.faults import test_remedies_logs, test_remedies_runs, test_remedies_settings
from tests.faults.messages import ROOT, messages
from tests.faults.remedies import TESTED

# They fill TESTED.
LOADED = test_remedies_logs, test_remedies_runs, test_remedies_settings
# Messages whose way out is gone in another test.
ELSEWHERE = {
    'compiling for a GPU needs Python 3.12 and the extra gpu-aot':
        'tests/kernels/test_compile_gpu.py::test_without_the_extra_the_command_names_it',
    '--plug=MODULE imports a module that registers another':
        'tests/test_extending.py::test_a_network_a_loss_and_a_data_set_of_ones_own_are_trained_and_evaluated',
    'the network reads the feature {} and the prepared data has {}: name its column with --features={}':
        'tests/test_extending.py::test_a_network_reads_the_features_of_the_events',
    'works on a whole item table alone: train with --model_shards=1':
        'tests/test_extending.py::test_a_network_of_ones_own_trains_alike_on_a_table_split_over_devices',
    'set data.rows_per_step to a multiple of {}, or resume on a device count that divides it':
        'tests/train/test_trainer.py::test_rows_that_the_devices_cannot_share_are_refused',
    'go on with --set=train.max_epochs={} or more, and --adopt_config':
        'tests/faults/test_answers.py::test_a_finished_run_adopts_no_config_that_it_does_not_train_with',
    'kept as %s and computed again': 'tests/faults/test_answers.py::test_a_changed_result_is_computed_again',
    'the data of the run was no longer in {} and is prepared again: {}':
        'tests/faults/test_remedies_runs.py::test_its_training_command_again_prepares_what_is_gone',
    'download of %s broke off (%s): trying again':
        'tests/data/test_download.py::test_an_interrupted_transfer_goes_on_where_it_broke_off',
    'the config packs epochs in another way: epoch {} starts anew':
        'tests/train/test_trainer.py::test_a_config_that_packs_in_another_way_starts_the_epoch_anew',
    'Ctrl-C again stops without saving':
        'tests/commands/test_train.py::test_the_first_signal_asks_and_a_second_ctrl_c_interrupts',
    'the same command goes on from it':
        'tests/commands/test_distributed.py::test_a_killed_process_ends_the_others_and_the_restart_goes_on',
    'Start all with the same command and data':
        'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    'Check that process 0 was started on the host of --coordinator_address':
        'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    '{} needs --distributed': 'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    'give all of --coordinator_address, --num_processes and --process_id':
        'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    '--workdir has to lie on a file system of all hosts':
        'tests/commands/test_distributed.py::test_two_processes_give_one_process_s_run',
    '{} COMMAND --help shows the flags of a command.':
        'tests/commands/test_main.py::test_help_shows_own_flags_by_topic_in_80_columns',
    '{} has no command {}':
        'tests/commands/test_main.py::test_a_command_that_there_is_not_is_answered_with_the_nearest',
    '{} has the best settings: ssd4rec train --config={}':
        'tests/tune/test_tune.py::test_a_search_goes_on_and_leaves_the_best',
    'stopped: the same command goes on with the search':
        'tests/tune/test_tune.py::test_a_search_goes_on_and_leaves_the_best',
    'give --study, the name of a study': 'tests/study/test_command.py::test_what_it_refuses_leaves_nothing',
    '{} is not of a study: name another --output':
        'tests/study/test_command.py::test_tables_that_are_not_of_a_study_are_left_alone',
    'has got {} of its {} trials: the same command goes on':
        'tests/study/test_command.py::test_a_search_that_is_cut_short_leaves_nothing_to_take',
    'give --tune, which searches, or --tuned, what a search found, not both':
        'tests/study/test_command.py::test_settings_are_searched_and_then_taken',
    '{}{}: the search tries that setting: leave it out here or of --space':
        'tests/study/test_command.py::test_what_a_flag_sets_is_searched_by_another_space_or_not_at_all',
    '{}: none of {} trials has a validation: search with other settings in --space, in a new folder':
        'tests/tune/test_tune.py::test_a_search_in_which_no_trial_has_a_result_is_an_error',
    'stopped: the same command goes on with the study':
        'tests/study/test_study.py::test_cells_go_on_where_they_stopped_and_none_runs_twice',
    '{} is damaged ({}): remove it, and the cell runs again':
        'tests/study/test_study.py::test_another_config_damage_and_unknown_rows_are_named',
    'search for the settings of {} with --tune':
        'tests/study/test_command.py::test_settings_are_searched_and_then_taken',
    '{} is of another config ({}): name another --output':
        'tests/study/test_command.py::test_a_folder_of_other_settings_another_study_or_another_log_is_refused',
    '{} holds the study {}: name another --output':
        'tests/study/test_command.py::test_a_folder_of_other_settings_another_study_or_another_log_is_refused',
    '{} holds cells of another log: name another --output':
        'tests/study/test_command.py::test_a_folder_of_other_settings_another_study_or_another_log_is_refused',
    '{} holds cells of different logs: name another --output':
        'tests/study/test_study.py::test_another_config_damage_and_unknown_rows_are_named',
    'this model was saved without histories: give histories of items instead of users':
        'tests/faults/test_remedies_settings.py::test_what_the_recommender_asks_for',
    'name the finished run with --workdir and the file to write with --output':
        'tests/experiments/test_record_run.py::test_a_finished_run',
    'ssd4rec train --dataset={} --data_dir=DIR --preset=published {}':
        'tests/experiments/test_record_run.py::test_the_command_means_the_config',
    '{} is of another version of the network: {} is {} there and {} here':
        'tests/run/test_saved_run.py::test_a_model_with_other_parameters_is_refused',
    'give --output, the folder to write':
        'tests/commands/test_export.py::test_the_folder_is_asked_for_and_what_is_no_export_stays',
    'give --checkpoint, the file of the released model, and --data, the log it was trained on':
        'tests/export/test_released.py::test_what_import_needs_is_asked_for',
    'give the log that it was trained on, or set data.min_user_interactions and data.min_item_interactions':
        'tests/export/test_released.py::test_what_does_not_fit_is_said_and_the_way_out_works',
    '{} is damaged: copy the folder again':
        'tests/export/test_program.py::test_damage_is_noticed_and_a_copy_heals_it',
    'jax.export writes with flatbuffers, which is missing':
        'tests/export/test_program.py::test_without_flatbuffers_the_extra_is_named',
    'usearch, which builds the index, is missing':
        'tests/export/test_vectors.py::test_without_usearch_the_extra_is_named',
    'a session of another model': 'tests/live/test_live_model.py::test_what_cannot_be_done_is_said_and_changes_nothing',
    'name another folder, or give the same command as there':
        'tests/commands/test_recommend_parts.py::'
        'test_a_folder_of_parts_knows_what_is_missing_and_refuses_what_is_not_its_own',
    'several processes answer --users=all: run other questions as one process':
        'tests/commands/test_recommend_parts.py::test_two_processes_write_what_one_writes',
    'give either --workdir, the folder of a training run, or --study, the folder of a study':
        'tests/report/test_run_page.py::test_what_cannot_be_shown_is_refused',
    'give --folders, folders of studies': 'tests/study/test_figures.py::test_the_command_of_the_picture',
    '{} holds no study.json': 'tests/report/test_run_page.py::test_what_cannot_be_shown_is_refused',
    'run the command of the study again, which writes it':
        'tests/report/test_study_page.py::test_a_damaged_study_is_refused',
    '--tensorboard needs the package tensorboardX':
        'tests/show/test_tensorboard.py::test_without_the_package_a_sentence_names_the_extra',
    'give --model, the folder of a saved model': 'tests/serve/test_command.py::test_a_model_is_asked_for',
    "pip install 'ssd4rec-jax[serve]'": 'tests/serve/test_command.py::test_without_fastapi_the_extra_is_named',
    'the model is not ready yet': 'tests/serve/test_http.py::test_before_it_is_ready_and_when_it_takes_too_long',
    'the answer took too long': 'tests/serve/test_http.py::test_before_it_is_ready_and_when_it_takes_too_long',
    'the service has ended: try again': 'tests/serve/test_workers.py::test_a_worker_answers_as_the_owner_does',
    'an HTTP worker cannot be started ({})':
        'tests/serve/test_workers.py::test_a_worker_that_cannot_be_started_is_tried_again',
    'cannot listen at --host={} --port={}':
        'tests/serve/test_workers.py::test_a_port_in_use_and_an_owner_without_workers_are_said',
    '--owner={} has no workers':
        'tests/serve/test_workers.py::test_a_port_in_use_and_an_owner_without_workers_are_said',
    'train.objective=cloze: the network {} does not predict hidden items':
        'tests/train/test_cloze.py::test_a_network_that_predicts_no_hidden_items_is_refused',
    'train.objective=cloze knows no term for seen items':
        'tests/train/test_cloze.py::test_the_term_for_seen_items_is_refused',
    'is in use by another server': 'tests/serve/test_event_log.py::test_one_process_at_a_time',
    'mend the disk and start anew': 'tests/serve/test_event_log.py::test_a_full_disk_leaves_the_log_as_it_was',
    'too many requests wait for the model': 'tests/serve/test_http.py::test_a_busy_service_says_when_to_come_again',
    'too many requests wait for the disk': 'tests/serve/test_http.py::test_a_busy_service_says_when_to_come_again',
    'error: --{}={} is unknown: there are {}': 'tests/kernels/test_bench_ssd.py::test_bad_flags_are_named',
}
# Texts that name a command or a flag without a way out.
NO_WAY_OUT = {
    'python -m {}', 'for --dataset=interactions', 'Usage: {} COMMAND [--flag=value ...]',
    '--features takes numbers and texts', 'settings: those of --preset=best for one network, half as wide',
    '; then what --set and --config say', '# What a compiled program may have at most; --write_limits',
    'error: --stages={} is unknown: there are {}', '--xla_gpu_autotune_level=0',
    'recommend --users=all', 'Answers from a live session or from a history', 'HTTP workers that died and were started',
    'or why the histories of users with new events', 'Keep connections busy with POST requests', 'Do what --fault says',
    ' at --coordinator_address={}', 'did not all meet{} within --connect_seconds={}. {}',
    'The settings of --dataset={}{} ({}).', 'histories cut to --tokens_per_row={}: training would not cut them',
    'error: --repeats={} must be at least 1', 'error: --json={} cannot be written: there is no such folder',
    'error: --topology={} is not one that libtpu knows', '--xla_jf_dump_to={} --xla_jf_dump_llo_text=true',
    'The settings are those of --preset={}', 'Settings that differ from --preset={}', 'ssd4rec serve',
    'warning: the data of the run is no longer in {} and cannot be prepared again ({})',
}


def test_every_message_that_names_a_way_out_has_a_test_that_goes_it():
    assert LOADED
    known = [*TESTED, *ELSEWHERE, *NO_WAY_OUT]
    found = dict(messages())
    untested = {at: text for at, text in found.items() if not any(said in text for said in known)}
    assert not untested, 'test each of these, in this file'
    for at in ELSEWHERE.values():
        file, _, name = at.partition('::')
        assert f'def {name}(' in (ROOT / file).read_text(), at
    gone = [said for said in (*ELSEWHERE, *NO_WAY_OUT) if not any(said in text for text in found.values())]
    assert not gone, 'no message says this any more'
