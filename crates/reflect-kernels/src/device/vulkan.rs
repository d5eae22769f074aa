//! What Vulkan tells of an adapter and wgpu does not.

use burn_wgpu::wgpu;

/// Memory that an adapter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Of the largest of its memories that are its own: what this process may take of it now, or all of it where the
    /// driver does not tell what others use.
    pub bytes: u64,
    /// Whether the driver told what others use.
    pub measured: bool,
}

/// The memory of `adapter`, as Vulkan tells it (`VK_EXT_memory_budget`, else the sizes of its heaps); `None`
/// through other APIs.
#[cfg(any(target_os = "linux", target_os = "android", windows))]
pub fn memory(adapter: &wgpu::Adapter) -> Option<Memory> {
    use ash::{ext, vk};
    use wgpu::hal::api::Vulkan;

    // SAFETY: the handle is read only.
    let adapter = unsafe { adapter.as_hal::<Vulkan>() }?;
    let instance = adapter.shared_instance();
    if instance.instance_api_version() < vk::API_VERSION_1_1 {
        return None;
    }
    let measured = adapter.physical_device_capabilities().supports_extension(ext::memory_budget::NAME);
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    if measured {
        properties = properties.push_next(&mut budget);
    }
    // SAFETY: the adapter lives, both structures are ours, and the second is chained where the device has it.
    unsafe {
        let raw = adapter.raw_physical_device();
        instance.raw_instance().get_physical_device_memory_properties2(raw, &mut properties);
    }
    let heaps = properties.memory_properties;
    let bytes = (0..heaps.memory_heap_count as usize)
        .filter(|heap| heaps.memory_heaps[*heap].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .map(|heap| match measured {
            true => budget.heap_budget[heap].saturating_sub(budget.heap_usage[heap]),
            false => heaps.memory_heaps[heap].size,
        })
        .max()?;
    Some(Memory { bytes, measured })
}

/// Whether dot products of four packed signed bytes are an instruction (`VK_KHR_shader_integer_dot_product`).
#[cfg(any(target_os = "linux", target_os = "android", windows))]
pub fn has_integer_dot(adapter: &wgpu::Adapter) -> bool {
    use ash::{khr, vk};
    use wgpu::hal::api::Vulkan;

    // SAFETY: the handle is read only.
    let Some(adapter) = (unsafe { adapter.as_hal::<Vulkan>() }) else { return false };
    let capabilities = adapter.physical_device_capabilities();
    if !capabilities.supports_extension(khr::shader_integer_dot_product::NAME) {
        return false;
    }
    let mut dot = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut dot);
    // SAFETY: the adapter lives, both structures are ours, and the device has the second one.
    unsafe {
        let raw = adapter.raw_physical_device();
        adapter.shared_instance().raw_instance().get_physical_device_properties2(raw, &mut properties);
    }
    dot.integer_dot_product4x8_bit_packed_signed_accelerated == vk::TRUE
}

/// Nothing is known through the APIs of this system.
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
pub fn memory(_: &wgpu::Adapter) -> Option<Memory> {
    None
}

/// Nothing is known through the APIs of this system.
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
pub fn has_integer_dot(_: &wgpu::Adapter) -> bool {
    false
}
