//! Every kernel on every adapter of this machine, through every API, against its reference. The kernels that
//! another kind of adapter would get are run too; those of GPUs on the first adapter alone, since lavapipe's
//! compiler takes minutes for them. `REFLECT_ACCEPTANCE=1` runs all on all.

use reflect_kernels::{
    device::{self, OpenDevice, Profile},
    verify::verify,
};
use reflect_tests::{ACCEPTANCE, is_set};

#[test]
fn kernels_match_their_references_on_every_adapter() {
    let mut open: Vec<(String, OpenDevice)> = vec![("cpu".to_owned(), device::cpu())];
    reflect_tests::require_gpu();
    let acceptance = is_set(ACCEPTANCE);
    for adapter in pollster::block_on(device::adapters()) {
        for face in std::iter::once(&adapter).chain(&adapter.others) {
            let wanted = |profile: &Profile| {
                *profile == face.profile() || profile.software || adapter.row.index == 0 || acceptance
            };
            for profile in face.profiles().into_iter().filter(wanted) {
                let name = format!(
                    "{} ({}, {} kernels, subgroups {})",
                    face.row.name,
                    face.row.backend,
                    if profile.software { "software" } else { "gpu" },
                    profile.subgroups
                );
                let device = pollster::block_on(face.open_as(profile)).expect("the adapter opens");
                open.push((name, device));
            }
        }
    }
    let mut failures = Vec::new();
    for (name, open) in open {
        let start = std::time::Instant::now();
        let rows = pollster::block_on(verify(&open.device, |_| {})).expect("every case can be read back");
        assert!(rows.len() > 100, "{name} ran only {} cases", rows.len());
        println!("{name}: {} cases in {:.1} s", rows.len(), start.elapsed().as_secs_f32());
        for row in rows.iter().filter(|row| !row.ok) {
            failures.push(format!(
                "{name}: {} {}: nmse {:.1e} over {:.1e}, max abs {:.1e}",
                row.op, row.case, row.nmse, row.tolerance, row.max_abs
            ));
        }
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}
