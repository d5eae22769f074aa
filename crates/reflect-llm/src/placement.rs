//! Which layers lie on which device.

use std::ops::Range;

use reflect_kernels::KvFormat;

use crate::{
    LlamaConfig,
    architecture::{Role, tensors},
    engine::Engine,
    need::{Need, scratch_bytes, show_bytes},
    weights::{TensorInfo, TensorSource},
};

/// What is known of a device before anything lies on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// Bytes that may be used; `None` where nobody knows.
    pub free: Option<u64>,
    /// How fast the device is beside the others, by the bytes that it reads in a second.
    pub speed: f64,
}

/// The devices together have no room for all layers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "{fit} of {layers} layers fit the devices, and {missing} more would be needed; add a device (cpu is one), or use a smaller format or a shorter --context"
)]
pub struct NoRoom {
    pub fit: usize,
    pub layers: usize,
    /// Bytes, for a person.
    pub missing: String,
}

/// Bytes of the parts of a model with its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    pub embedding: u64,
    /// Weights of each layer.
    pub layers: Vec<u64>,
    /// The last norm and the head; the embedding again where the two are tied.
    pub head: u64,
    /// Whether the head is the embedding again.
    pub tied: bool,
    /// Cached keys and values of one layer.
    pub cache: u64,
    /// Activations, on each device.
    pub scratch: u64,
}

impl Parts {
    /// Those of a checkpoint with `positions` cached positions and steps of `rows` rows, of which
    /// `logit_rows` get logits.
    pub fn of(
        config: &LlamaConfig,
        source: &impl TensorSource,
        positions: usize,
        format: KvFormat,
        rows: usize,
        logit_rows: usize,
    ) -> Self {
        let cache = Engine::cache_bytes(config, positions, format) / config.num_hidden_layers as u64;
        let scratch = scratch_bytes(config, rows, logit_rows);
        let layers = vec![0; config.num_hidden_layers];
        let tied = config.tie_word_embeddings;
        let mut parts = Self { embedding: 0, layers, head: 0, tied, cache, scratch };
        for id in tensors(config) {
            let bytes = source.info(&id.name()).map_or(0, TensorInfo::device_bytes);
            match (id.layer, id.role) {
                (Some(layer), _) => parts.layers[layer] += bytes,
                (None, Role::Embedding) => parts.embedding += bytes,
                (None, _) => parts.head += bytes,
            }
        }
        if tied {
            parts.head += parts.embedding;
        }
        parts
    }

    /// What a device needs that holds `layers`.
    pub fn need(&self, layers: &Range<usize>) -> Need {
        let (first, last) = (layers.start == 0, layers.end == self.layers.len());
        let mut weights = self.layers[layers.clone()].iter().sum();
        if first {
            weights += self.embedding;
        }
        if last {
            // On one device the head of a tied model is the embedding itself.
            weights += if first && self.tied { self.head - self.embedding } else { self.head };
        }
        Need { weights, cache: self.cache * layers.len() as u64, scratch: self.scratch }
    }
}

impl Parts {
    /// What a device needs that reads each layer when it is its turn: one of them at a time, and a tensor of
    /// the file behind it.
    pub fn streamed_need(&self) -> Need {
        let all = self.need(&(0..self.layers.len()));
        let layer = self.layers.iter().copied().max().unwrap_or(0);
        // Half of the feed-forward network is the largest tensor, a quarter of a layer or a little more.
        let mapped = layer * 3 / 10;
        let weights = all.weights - self.layers.iter().sum::<u64>() + layer;
        Need { weights, scratch: all.scratch + mapped, ..all }
    }
}

/// Layers for each room, in order and in proportion to their speeds as far as there is room. A room
/// with no layers is left out by the caller.
///
/// # Errors
/// [`NoRoom`].
pub fn place(parts: &Parts, rooms: &[Room]) -> Result<Vec<Range<usize>>, NoRoom> {
    let count = parts.layers.len();
    // Layers are nearly alike; the largest stands for all, so that none is promised too much.
    let layer = parts.layers.iter().copied().max().unwrap_or(0) + parts.cache;
    let capacity: Vec<usize> = rooms
        .iter()
        .enumerate()
        .map(|(at, room)| {
            let ends = [(at == 0, parts.embedding), (at + 1 == rooms.len(), parts.head)];
            let fixed: u64 =
                parts.scratch + ends.iter().filter(|(here, _)| *here).map(|(_, b)| b).sum::<u64>();
            match room.free {
                Some(free) => (free.saturating_sub(fixed) / layer.max(1)).min(count as u64) as usize,
                None => count,
            }
        })
        .collect();
    let fit: usize = capacity.iter().sum();
    if fit < count {
        let missing = show_bytes((count - fit) as u64 * layer);
        return Err(NoRoom { fit, layers: count, missing });
    }
    let mut shares = vec![0usize; rooms.len()];
    for _ in 0..count {
        // The device that would be done soonest with one layer more.
        let next = (0..rooms.len()).filter(|at| shares[*at] < capacity[*at]).min_by(|a, b| {
            let time = |at: &usize| (shares[*at] + 1) as f64 / rooms[*at].speed.max(f64::MIN_POSITIVE);
            time(a).total_cmp(&time(b))
        });
        match next {
            Some(at) => shares[at] += 1,
            None => unreachable!("the capacities hold all layers"),
        }
    }
    let mut start = 0;
    Ok(shares
        .into_iter()
        .map(|share| {
            let layers = start..start + share;
            start = layers.end;
            layers
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(layers: usize) -> Parts {
        Parts { embedding: 50, layers: vec![90; layers], head: 60, tied: false, cache: 10, scratch: 5 }
    }

    fn room(free: u64, speed: f64) -> Room {
        Room { free: Some(free), speed }
    }

    #[test]
    fn layers_go_where_they_are_done_soonest_and_nowhere_without_room() {
        let unknown = Room { free: None, speed: 1.0 };
        assert_eq!(place(&parts(7), &[unknown]).map(|all| all[0].clone()), Ok(0..7));
        assert_eq!(place(&parts(8), &[unknown, unknown]), Ok(vec![0..4, 4..8]));
        let fast = Room { speed: 3.0, ..unknown };
        assert_eq!(place(&parts(8), &[fast, unknown]), Ok(vec![0..6, 6..8]));
        // 255 bytes less the embedding and the scratch are two layers.
        assert_eq!(place(&parts(8), &[room(255, 3.0), unknown]), Ok(vec![0..2, 2..8]));
        assert_eq!(place(&parts(8), &[room(254, 3.0), room(1000, 1.0)]), Ok(vec![0..1, 1..8]));
        let error = place(&parts(8), &[room(355, 1.0), room(365, 1.0)]).unwrap_err();
        assert_eq!((error.fit, error.layers, error.missing.as_str()), (6, 8, "0 KB"));
    }

    #[test]
    fn needs_of_all_stages_are_the_whole() {
        let parts = parts(6);
        let needs = [0..2, 2..3, 3..6].map(|layers| parts.need(&layers));
        let weights: u64 = needs.iter().map(|need| need.weights).sum();
        assert_eq!(weights, 50 + 6 * 90 + 60);
        assert_eq!(needs.map(|need| need.cache), [20, 10, 30]);
        let tied = Parts { tied: true, ..parts };
        assert_eq!(tied.need(&(0..6)).weights, 6 * 90 + 60);
        assert_eq!(tied.need(&(3..6)).weights, 3 * 90 + 60);
    }
}
