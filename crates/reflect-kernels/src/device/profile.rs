//! How kernels are chosen for each device that is open.

use std::sync::{PoisonError, RwLock};

use burn::tensor::{Int, Tensor};
use burn_wgpu::{CubeBackend, CubeTensor};

use super::OpenDevice;
use crate::tune::Tuning;

/// How kernels are chosen for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Lanes run on CPU cores, so barriers and reductions between lanes are dear.
    pub software: bool,
    /// Subgroup operations may be used.
    pub subgroups: bool,
    /// Lanes of a subgroup, where they may be used and all have the same number.
    pub subgroup_size: Option<usize>,
    /// Kernels may use integers of 64 bits, which help on software adapters.
    pub longs: bool,
    /// Bytes of the largest binding.
    pub max_binding_bytes: u64,
    /// Sizes of kernels, where there is a choice.
    pub tuning: Tuning,
}

/// Profiles of the devices opened so far, by the runtime's device number.
static PROFILES: RwLock<Vec<(u16, Profile)>> = RwLock::new(Vec::new());

/// Notes how kernels are chosen for a device.
pub(super) fn register(index: u16, profile: Profile) {
    PROFILES.write().unwrap_or_else(PoisonError::into_inner).push((index, profile));
}

/// Chooses other sizes of kernels for a device. On the CPU there are none.
pub fn set_tuning(open: &mut OpenDevice, tuning: Tuning) {
    if let Some(profile) = &mut open.profile {
        profile.tuning = tuning;
        let mut profiles = PROFILES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = profiles.iter_mut().find(|(index, _)| *index == open.index) {
            *known = *profile;
        }
    }
}

/// The profile of the device that holds `tensor`, `None` on the CPU.
pub(crate) fn profile_of(tensor: &Tensor<1, Int>) -> Option<Profile> {
    tensor.clone().try_into_primitive::<CubeBackend>().ok().map(|tensor| profile(&tensor))
}

/// The profile of the device that holds `tensor`. A device that this file did not open is taken
/// for the least capable.
pub(crate) fn profile(tensor: &CubeTensor) -> Profile {
    let id = tensor.device.to_id().index_id;
    let profiles = PROFILES.read().unwrap_or_else(PoisonError::into_inner);
    profiles.iter().find(|(known, _)| *known == id).map_or(
        Profile {
            software: false,
            subgroups: false,
            subgroup_size: None,
            longs: false,
            max_binding_bytes: 128 << 20,
            tuning: Tuning::default(),
        },
        |(_, profile)| *profile,
    )
}
