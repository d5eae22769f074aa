//! Rows of one tensor in another format and order.

use std::ops::Range;

use anyhow::{Context, Result};
use rayon::prelude::*;
use reflect_kernels::{
    Format,
    format::{encode_row, pack_row},
    ops::matmul::widen,
};
use reflect_llm::{architecture::Permute, need::PIECE, weights::TensorSource};

use super::layout::Piece;

/// Bytes of a tensor's rows in its new format, some megabytes at a time.
pub fn blocks<'a, S: TensorSource>(
    source: &'a S,
    piece: &'a Piece,
    permute: Permute,
) -> impl Iterator<Item = impl Future<Output = Result<Vec<u8>>> + 'a> + 'a {
    // Whole heads, so that their rows can change places.
    let unit = piece.head.unwrap_or(1);
    let wanted = PIECE / (4 * piece.cols()).max(1);
    let step = (wanted / unit).max(1) * unit;
    let rows = piece.rows();
    (0..rows).step_by(step).map(move |start| {
        let range = start..(start + step).min(rows);
        async move {
            match piece.shape.len() {
                1 => vector(source, piece, permute).await,
                _ => matrix(source, piece, permute, range).await,
            }
        }
    })
}

async fn matrix<S: TensorSource>(
    source: &S,
    piece: &Piece,
    permute: Permute,
    range: Range<usize>,
) -> Result<Vec<u8>> {
    let count = range.len();
    let bytes = source.read(&piece.name, range).await?;
    let row_bytes = bytes.len() / count.max(1);
    let size = piece.head.unwrap_or(1);
    let permute = if piece.head.is_some() { permute } else { Permute::No };
    let row = |at: usize| {
        let from = at / size * size + permute.from(at % size, size);
        &bytes[from * row_bytes..][..row_bytes]
    };
    if piece.from == piece.to {
        return Ok((0..count).flat_map(|at| row(at).iter().copied()).collect());
    }
    let made: Option<Vec<Vec<u8>>> = (0..count)
        .into_par_iter()
        .map(|at| encode_row(piece.to, &floats(piece.from, piece.cols(), row(at))))
        .collect();
    Ok(made.with_context(|| format!("{} has rows that are no whole blocks", piece.name))?.concat())
}

/// A vector, always in f32.
async fn vector<S: TensorSource>(source: &S, piece: &Piece, permute: Permute) -> Result<Vec<u8>> {
    let bytes = source.read(&piece.name, 0..1).await?;
    let values = floats(piece.from, piece.cols(), &bytes);
    let size = piece.head.unwrap_or(1);
    let permute = if piece.head.is_some() { permute } else { Permute::No };
    let order = (0..values.len()).map(|at| values[at / size * size + permute.from(at % size, size)]);
    Ok(order.flat_map(f32::to_le_bytes).collect())
}

fn floats(format: Format, cols: usize, row: &[u8]) -> Vec<f32> {
    let mut words = vec![0; format.row_words(cols)];
    pack_row(format, cols, row, &mut words);
    let mut values = vec![0.0; cols];
    widen(format, cols, &words, &mut values);
    values
}

/// The numbers of rows in fp8 without the scales behind them, which go to `scales`.
pub fn split_scales(rows: &[u8], cols: usize, scales: &mut Vec<u8>) -> Vec<u8> {
    let mut numbers = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(cols + 4) {
        numbers.extend(&row[..cols]);
        scales.extend(&row[cols..]);
    }
    numbers
}
