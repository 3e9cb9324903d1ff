//! Schedules carried out on a model of the cache that knows which token lies in which row.

use super::*;

const PAGE: usize = 4;

/// A token of a sequence: request, position, and the sample where it is not the prompt's.
type Token = (usize, usize, Option<usize>);

/// Requests, and what they are carried out with.
struct Plan<'a> {
    prompt_lens: &'a [usize],
    num_samples: &'a [usize],
    num_slots: usize,
    num_pages: usize,
    max_prefill_tokens: usize,
}

#[derive(Debug, Default, PartialEq)]
struct Account {
    /// Times that each request's prompt was run, alone or with what was drawn.
    prefills: Vec<usize>,
    /// Prefills that ended within a sequence.
    num_parts: usize,
    /// Sequences begun before that were run behind a prompt that others held.
    num_behind: usize,
    num_decodes: usize,
    num_preempted: usize,
}

/// Carries a schedule out, checking each step; sample s of request r ends after `len(r, s)` tokens.
fn carry_out(plan: &Plan, len: impl Fn(usize, usize) -> usize) -> Account {
    let Plan {
        prompt_lens,
        num_samples,
        ..
    } = plan;
    let mut pages = Pages::new(plan.num_slots, plan.num_pages, PAGE);
    let mut scheduler = Scheduler::new(plan.num_slots, plan.max_prefill_tokens);
    for (request, (&prompt_len, &count)) in prompt_lens.iter().zip(*num_samples).enumerate() {
        scheduler.add(request, prompt_len, &[], 0..count);
    }
    let token = |id: SampleId, position: usize| -> Token {
        let is_drawn = position >= prompt_lens[id.request];
        (id.request, position, is_drawn.then_some(id.sample))
    };
    let mut rows: Vec<Option<Token>> = vec![None; plan.num_pages * PAGE];
    let mut drawn: Vec<Vec<usize>> = num_samples.iter().map(|_| Vec::new()).collect();
    let mut account = Account {
        prefills: vec![0; prompt_lens.len()],
        ..Account::default()
    };
    let mut is_decode_due = false;
    while let Some(step) = scheduler.schedule(&mut pages) {
        // All at once: none may read what another has written.
        let before = rows.clone();
        for (from, to) in pages.take_copies() {
            let (from, to) = (from as usize * PAGE, to as usize * PAGE);
            rows[to..to + PAGE].copy_from_slice(&before[from..from + PAGE]);
        }
        let is_decode = matches!(step, Step::Decode { .. });
        assert!(is_decode || !is_decode_due, "others wait for two parts");
        is_decode_due = false;
        let drawing: Vec<usize> = match step {
            Step::Admit(admissions) => {
                let mut wave = 0;
                for a in &admissions {
                    let samples = &mut drawn[a.id.request];
                    let prompt_len = prompt_lens[a.id.request];
                    let held = prompt_len
                        + match a.source {
                            PromptSource::Restore => samples[a.id.sample] - 1,
                            PromptSource::Prefill | PromptSource::Shared => {
                                // Samples start in order, each once.
                                assert_eq!(samples.len(), a.id.sample);
                                samples.extend(a.is_complete.then_some(0));
                                0
                            }
                        };
                    assert_eq!(pages.len(a.slot), held);
                    assert_eq!(a.is_complete, a.end == held);
                    assert_eq!(a.is_complete, scheduler.live(a.slot) == Some(a.id));
                    if a.begin < a.end {
                        pages.write(a.slot, a.begin..a.end);
                    }
                    for position in 0..a.end {
                        let row = &mut rows[pages.row(a.slot, position) as usize];
                        let is_run = position >= a.begin;
                        *row = row
                            .filter(|_| !is_run)
                            .or(is_run.then(|| token(a.id, position)));
                        assert_eq!(*row, Some(token(a.id, position)), "not run before");
                    }
                    wave += a.end - a.begin;
                    account.num_parts += usize::from(!a.is_complete);
                    account.prefills[a.id.request] += usize::from(a.begin == 0);
                    let is_behind = a.source == PromptSource::Restore && a.begin == prompt_len;
                    account.num_behind += usize::from(is_behind);
                }
                assert!(wave <= plan.max_prefill_tokens);
                let (last, others) = admissions.split_last().expect("somebody starts");
                assert!(others.iter().all(|a| a.is_complete), "one is in parts");
                is_decode_due =
                    !last.is_complete && (0..plan.num_slots).any(|s| scheduler.live(s).is_some());
                let fresh = admissions.iter();
                fresh
                    .filter(|a| a.source != PromptSource::Restore && a.is_complete)
                    .map(|a| a.slot)
                    .collect()
            }
            Step::Decode { num_live } => {
                account.num_decodes += 1;
                let is_live = |slot: usize| scheduler.live(slot).is_some();
                assert!((0..plan.num_slots).all(|slot| is_live(slot) == (slot < num_live)));
                for slot in 0..num_live {
                    let id = scheduler.live(slot).expect("live");
                    let position = pages.len(slot);
                    rows[pages.row(slot, position) as usize] = Some(token(id, position));
                    pages.push(slot);
                }
                (0..num_live).collect()
            }
        };
        // Nobody wrote where another reads.
        for slot in 0..plan.num_slots {
            if let Some(id) = scheduler.live(slot) {
                for position in 0..pages.len(slot) {
                    let row = pages.row(slot, position) as usize;
                    assert_eq!(rows[row], Some(token(id, position)));
                }
            }
        }
        for slot in drawing {
            let id = scheduler.live(slot).expect("live");
            let tokens = &mut drawn[id.request][id.sample];
            // The cache holds the prompt and every drawn token but the one drawn now.
            assert_eq!(pages.len(slot), prompt_lens[id.request] + *tokens);
            *tokens += 1;
            if *tokens == len(id.request, id.sample) {
                scheduler.finish(slot, &mut pages);
            }
        }
        account.num_preempted += scheduler.take_num_preempted();
    }
    assert_eq!(pages.num_free(), plan.num_pages, "every page came back");
    for (request, samples) in drawn.iter().enumerate() {
        let lens: Vec<usize> = (0..num_samples[request]).map(|s| len(request, s)).collect();
        assert_eq!(*samples, lens, "request {request}");
    }
    account
}

const PLENTY: Plan = Plan {
    prompt_lens: &[3, 5, 2, 7],
    num_samples: &[4, 1, 16, 3],
    num_slots: 3,
    num_pages: 1000,
    max_prefill_tokens: 8192,
};

fn lengths(pattern: usize) -> impl Fn(usize, usize) -> usize {
    move |r, s| 1 + (r * 7 + s * 5 + pattern * (s + 3)) % 11
}

#[test]
fn every_prompt_is_prefilled_once_whatever_the_slots() {
    for num_slots in [1, 2, 3, 5, 24, 64] {
        for pattern in 0..20 {
            let plan = Plan {
                num_slots,
                ..PLENTY
            };
            let account = carry_out(&plan, lengths(pattern));
            assert_eq!(
                account.prefills, [1; 4],
                "{num_slots} slots, pattern {pattern}"
            );
            assert_eq!(account.num_preempted, 0);
        }
    }
}

#[test]
fn with_few_pages_samples_are_taken_out_and_all_come_to_their_end() {
    // The longest sequence takes 7 + 11 - 1 tokens: five pages.
    let mut num_preempted = 0;
    for num_pages in 5..12 {
        for num_slots in [1, 2, 5, 24] {
            for pattern in 0..20 {
                let plan = Plan {
                    num_slots,
                    num_pages,
                    ..PLENTY
                };
                let account = carry_out(&plan, lengths(pattern));
                num_preempted += account.num_preempted;
            }
        }
    }
    assert!(num_preempted > 100, "{num_preempted}");
}

#[test]
fn freed_slots_are_refilled_before_the_next_decode() {
    // Two slots, lengths 1 + decodes: 3 and 1 start; the third sample takes the slot of the
    // second at once and runs beside the first: 2 decode steps, where waves would need 4.
    let lengths = [3, 1, 3];
    let plan = Plan {
        prompt_lens: &[2],
        num_samples: &[3],
        num_slots: 2,
        ..PLENTY
    };
    assert_eq!(carry_out(&plan, |_, s| lengths[s]).num_decodes, 2);
}

fn ids(step: Option<Step>) -> Vec<(usize, usize, PromptSource)> {
    let Some(Step::Admit(admissions)) = step else {
        panic!("{step:?}");
    };
    let ids = admissions.iter();
    ids.map(|a| (a.id.request, a.id.sample, a.source)).collect()
}

#[test]
fn group_larger_than_the_slots_shares_its_prompt() {
    use PromptSource::{Prefill, Shared};
    let (mut scheduler, mut pages) = (Scheduler::new(2, 100), Pages::new(2, 10, PAGE));
    scheduler.add(0, 5, &[], 0..3);
    let first = ids(scheduler.schedule(&mut pages));
    assert_eq!(first, [(0, 0, Prefill), (0, 1, Shared)]);
    assert_eq!(pages.table(0), pages.table(1));
    assert!(scheduler.is_waiting(0));
    scheduler.finish(0, &mut pages);
    scheduler.finish(1, &mut pages);
    assert_eq!(pages.num_free(), 8, "the prompt stays");
    assert_eq!(ids(scheduler.schedule(&mut pages)), [(0, 2, Shared)]);
    assert!(!scheduler.is_waiting(0));
    let step = scheduler.schedule(&mut pages);
    assert_eq!(step, Some(Step::Decode { num_live: 1 }));
    scheduler.finish(0, &mut pages);
    assert_eq!(pages.num_free(), 10);
    assert_eq!(scheduler.schedule(&mut pages), None);
}

#[test]
fn what_has_most_to_do_comes_first_within_a_turn() {
    use PromptSource::{Prefill, Restore};
    let (mut scheduler, mut pages) = (Scheduler::new(1, 100), Pages::new(1, 50, PAGE));
    let mut order = Vec::new();
    let mut take = |scheduler: &mut Scheduler, pages: &mut Pages, count: usize| {
        for _ in 0..count {
            order.extend(ids(scheduler.schedule(pages)));
            scheduler.finish(0, pages);
        }
    };
    scheduler.add(0, 3, &[], 0..1);
    scheduler.add(1, 9, &[], 0..1);
    scheduler.add(2, 5, &[(0, 2), (1, 7)], 2..2);
    take(&mut scheduler, &mut pages, 1);
    // A longer prompt that comes later does not pass those before it.
    scheduler.add(3, 20, &[], 0..1);
    scheduler.add(4, 21, &[], 0..1);
    take(&mut scheduler, &mut pages, 5);
    let restored = [(2, 1, Restore), (2, 0, Restore)];
    let fresh = [
        (1, 0, Prefill),
        (0, 0, Prefill),
        (4, 0, Prefill),
        (3, 0, Prefill),
    ];
    assert_eq!(order, [&restored[..], &fresh].concat());
}

#[test]
fn the_youngest_gives_its_pages_to_the_others_and_comes_back_first() {
    let (mut scheduler, mut pages) = (Scheduler::new(2, 100), Pages::new(2, 6, PAGE));
    scheduler.add(0, 8, &[], 0..1);
    scheduler.add(1, 4, &[], 0..1);
    scheduler.add(2, 3, &[], 0..1);
    assert_eq!(ids(scheduler.schedule(&mut pages)).len(), 2);
    // 8 and 4 tokens: with the ninth of the first and the fifth of the second five pages are taken, and at
    // the ninth of the second none is left after the thirteenth of the first.
    let mut steps = 0;
    while scheduler.take_num_preempted() == 0 {
        let step = scheduler.schedule(&mut pages);
        if scheduler.num_live() == 2 {
            assert_eq!(step, Some(Step::Decode { num_live: 2 }));
        }
        (0..scheduler.num_live()).for_each(|slot| pages.push(slot));
        steps += 1;
    }
    assert_eq!((steps, scheduler.live(1)), (5, None));
    assert_eq!(scheduler.live(0).map(|id| id.request), Some(0));
    scheduler.finish(0, &mut pages);
    let next = ids(scheduler.schedule(&mut pages));
    assert_eq!(next[0], (1, 0, PromptSource::Restore));
    assert_eq!((pages.len(0), next[1].0), (8, 2));
}

#[test]
fn a_long_prefill_goes_in_parts_between_which_others_decode() {
    let plan = Plan {
        prompt_lens: &[5000, 5000, 9000, 100],
        num_samples: &[2; 4],
        num_slots: 8,
        num_pages: 10_000,
        ..PLENTY
    };
    let account = carry_out(&plan, |_, _| 5);
    assert_eq!(account.prefills, [1; 4]);
    // 8192 of the 9000 while nobody decodes, its rest and 5000; 5000 and 100 a step later, and four steps for the last.
    assert_eq!((account.num_parts, account.num_decodes), (1, 5));
}

#[test]
fn whatever_is_run_in_parts_comes_to_its_end() {
    let (mut num_preempted, mut num_parts, mut num_behind) = (0, 0, 0);
    for max_prefill_tokens in 1..9 {
        for num_pages in [5, 6, 8, 11, 1000] {
            for num_slots in [1, 2, 5, 24] {
                for pattern in 0..20 {
                    let plan = Plan {
                        num_slots,
                        num_pages,
                        max_prefill_tokens,
                        ..PLENTY
                    };
                    let account = carry_out(&plan, lengths(pattern));
                    num_preempted += account.num_preempted;
                    num_parts += account.num_parts;
                    num_behind += account.num_behind;
                    if num_pages == 1000 {
                        assert_eq!(account.prefills, [1; 4]);
                    }
                }
            }
        }
    }
    assert!(num_preempted > 100, "{num_preempted}");
    assert!(num_parts > 1000, "{num_parts}");
    assert!(num_behind > 100, "{num_behind}");
}

/// What a step runs: request, sample, begin, end.
fn parts(step: Option<Step>) -> Vec<[usize; 4]> {
    let Some(Step::Admit(admissions)) = step else {
        panic!("{step:?}");
    };
    let parts = admissions.iter();
    parts
        .map(|a| [a.id.request, a.id.sample, a.begin, a.end])
        .collect()
}

#[test]
fn others_decode_between_the_parts_of_a_prompt_and_its_siblings_wait_for_the_last() {
    let (mut scheduler, mut pages) = (Scheduler::new(4, 4), Pages::new(4, 20, PAGE));
    scheduler.add(0, 2, &[], 0..1);
    assert_eq!(parts(scheduler.schedule(&mut pages)), [[0, 0, 0, 2]]);
    scheduler.add(1, 9, &[], 0..2);
    scheduler.add(2, 3, &[], 0..1);
    let decode = Some(Step::Decode { num_live: 1 });
    for part in [[1, 0, 0, 4], [1, 0, 4, 8]] {
        assert_eq!(parts(scheduler.schedule(&mut pages)), [part]);
        pages.write(1, part[2]..part[3]);
        assert!(scheduler.is_waiting(1) && scheduler.live(1).is_none());
        assert_eq!(scheduler.schedule(&mut pages), decode);
        pages.push(0);
    }
    // The rest of the budget goes to others.
    let last = [[1, 0, 8, 9], [1, 1, 9, 9], [2, 0, 0, 3]];
    assert_eq!(parts(scheduler.schedule(&mut pages)), last);
    assert_eq!(pages.table(1), pages.table(2));
    let step = scheduler.schedule(&mut pages);
    assert_eq!(step, Some(Step::Decode { num_live: 4 }));
}

#[test]
fn what_decodes_changes_places_with_what_is_run_in_parts() {
    let (mut scheduler, mut pages) = (Scheduler::new(3, 4), Pages::new(3, 20, PAGE));
    scheduler.add(0, 3, &[], 0..1);
    assert_eq!(parts(scheduler.schedule(&mut pages)), [[0, 0, 0, 3]]);
    assert!(matches!(
        scheduler.schedule(&mut pages),
        Some(Step::Decode { .. })
    ));
    pages.push(0);
    scheduler.add(1, 4, &[], 0..1);
    assert_eq!(parts(scheduler.schedule(&mut pages)), [[1, 0, 0, 4]]);
    // The first slot is free again when the long one comes, and it begins there.
    scheduler.finish(0, &mut pages);
    scheduler.add(2, 9, &[], 0..1);
    assert_eq!(parts(scheduler.schedule(&mut pages)), [[2, 0, 0, 4]]);
    pages.write(0, 0..4);
    let step = scheduler.schedule(&mut pages);
    assert_eq!(step, Some(Step::Decode { num_live: 1 }));
    assert_eq!(scheduler.live(0).map(|id| id.request), Some(1));
    assert_eq!((pages.len(0), pages.len(1)), (4, 9));
    pages.push(0);
    let step = scheduler.schedule(&mut pages);
    let Some(Step::Admit(admissions)) = step else {
        panic!("{step:?}");
    };
    assert_eq!((admissions[0].slot, admissions[0].begin), (1, 4));
}

#[test]
fn a_prompt_taken_out_between_its_parts_begins_anew_and_is_still_fresh() {
    let (mut scheduler, mut pages) = (Scheduler::new(2, 4), Pages::new(2, 8, PAGE));
    scheduler.add(0, 4, &[], 0..1);
    assert_eq!(parts(scheduler.schedule(&mut pages)), [[0, 0, 0, 4]]);
    scheduler.add(1, 9, &[], 0..2);
    let part = ids(scheduler.schedule(&mut pages));
    assert_eq!(part, [(1, 0, PromptSource::Prefill)]);
    scheduler.preempt_all(&mut pages);
    assert_eq!((scheduler.take_num_preempted(), pages.num_free()), (2, 8));
    assert!(scheduler.is_waiting(1));
    // What was drawn before comes first; then the prompt, from its first token on, before what came later.
    scheduler.add(2, 20, &[], 0..1);
    let next = scheduler.schedule(&mut pages);
    assert_eq!(ids(next), [(0, 0, PromptSource::Restore)]);
    assert_eq!(
        scheduler.schedule(&mut pages),
        Some(Step::Decode { num_live: 1 })
    );
    pages.push(0);
    let next = scheduler.schedule(&mut pages);
    let expected = [[1, 0, 0, 4]];
    assert_eq!(ids(next.clone()), [(1, 0, PromptSource::Prefill)]);
    assert_eq!(parts(next), expected);
}

#[test]
fn what_was_begun_before_shares_the_prompt_that_a_sibling_holds() {
    let (mut scheduler, mut pages) = (Scheduler::new(3, 100), Pages::new(3, 20, PAGE));
    scheduler.add(0, 6, &[(0, 1), (1, 4)], 2..2);
    // Nobody holds it yet. The second waits until the first has run it, though it would fit.
    assert_eq!(parts(scheduler.schedule(&mut pages)), [[0, 1, 0, 9]]);
    pages.write(0, 0..9);
    let step = scheduler.schedule(&mut pages);
    assert_eq!(step, Some(Step::Decode { num_live: 1 }));
    // Nothing is left to be run then.
    assert_eq!(parts(scheduler.schedule(&mut pages)), [[0, 0, 6, 6]]);
    assert_eq!(pages.table(1), &pages.table(0)[..2]);
    assert!(pages.take_copies().is_empty());
    scheduler.preempt(0, &mut pages);
    // Three tokens more, on a copy of the page where the prompt ends and a page of its own.
    let free = pages.num_free();
    assert_eq!(parts(scheduler.schedule(&mut pages)), [[0, 1, 6, 9]]);
    assert_eq!(pages.take_copies().len(), 1);
    assert_eq!((pages.num_free(), pages.len(0)), (free - 2, 9));
    assert_eq!(pages.table(0)[0], pages.table(1)[0]);
}

#[test]
fn prompt_and_completion_must_fit_the_context() {
    assert!(check_fit(7, 40, 24, 64).is_ok());
    let error = check_fit(7, 41, 24, 64).unwrap_err();
    let message = error.to_string();
    for part in [
        "prompt 7 ",
        "41 tokens",
        "sampling.max_new_tokens` = 24",
        "needs 65",
        "of 64",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let empty = check_fit(9, 0, 1, 64).unwrap_err().to_string();
    assert!(empty.contains("prompt 9 has no tokens"), "{empty}");
}
