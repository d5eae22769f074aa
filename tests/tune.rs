//! Kernels are timed and chosen on the adapters of this machine, as if they were GPUs.

use std::time::Instant;

use pollster::block_on;
use reflect_kernels::{
    device::{Profile, adapters, cpu, set_tuning},
    tune::{SIZES, Tuning, tune},
    verify::verify_products,
};

const SHAPE: [usize; 3] = [96, 200, 160];

#[test]
fn a_choice_is_made_where_there_is_one() {
    reflect_tests::require_gpu();
    let start = Instant::now();
    let clock = || start.elapsed().as_secs_f64() * 1e3;
    assert_eq!(block_on(tune(&mut cpu(), SHAPE, clock)), Ok(None), "the CPU has no teams");
    for adapter in block_on(adapters()) {
        let own = adapter.profile();
        let mut open = block_on(adapter.open()).expect("the adapter opens");
        assert_eq!(block_on(tune(&mut open, SHAPE, clock)).is_ok_and(|t| t.is_some()), !own.software);
        let gpu = Profile { software: false, longs: false, ..own };
        let mut open = block_on(adapter.open_as(gpu)).expect("the adapter opens");
        let found = block_on(tune(&mut open, SHAPE, clock)).expect("it is timed").expect("a choice");
        assert!(found.is_known(), "{found:?}");
        assert_eq!(open.profile.expect("a GPU").tuning, found);
    }
}

#[test]
fn every_choice_is_right() {
    reflect_tests::require_gpu();
    let adapters = block_on(adapters());
    // Teams add up through workgroup memory, and by subgroups where their size is known.
    let by_subgroups = adapters.iter().find(|adapter| adapter.profile().subgroup_size.is_some());
    assert!(by_subgroups.is_some() || adapters.iter().all(|adapter| !adapter.profile().software));
    for (adapter, subgroups) in [(adapters.first(), false), (by_subgroups, true)] {
        let Some(adapter) = adapter else { continue };
        let own = adapter.profile();
        let subgroup_size = own.subgroup_size.filter(|_| subgroups);
        let gpu = Profile { software: false, longs: false, subgroup_size, ..own };
        let mut open = block_on(adapter.open_as(gpu)).expect("the adapter opens");
        for size in SIZES {
            set_tuning(&mut open, Tuning { few_rows: size, many_rows: size });
            let rows = block_on(verify_products(&open.device)).expect("every case can be read back");
            let wrong: Vec<_> = rows.iter().filter(|row| !row.ok).collect();
            assert!(wrong.is_empty(), "{} {size:?}, subgroups {subgroups}: {wrong:?}", open.name);
        }
    }
}
