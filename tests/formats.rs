//! Packed formats against the `gguf` package, `ml_dtypes` and llama.cpp's quantiser
//! (`tests/golden/formats/make_formats.py`). The products over them are in `tests/kernels.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use reflect_kernels::{
    Format,
    format::{decode_e4m3, encode_row, pack_row, unpack_row},
};
use safetensors::SafeTensors;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/formats")
}

fn golden() -> Vec<u8> {
    std::fs::read(folder().join("formats.safetensors")).expect("the golden file is in the repository")
}

fn floats(file: &SafeTensors<'_>, name: &str) -> (Vec<f32>, usize) {
    let view = file.tensor(name).expect("a tensor of the golden file");
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    (values.collect(), *view.shape().last().expect("a shape"))
}

fn unpacked(format: Format, file: &[u8], cols: usize) -> Vec<f32> {
    let mut words = vec![0; format.row_words(cols)];
    pack_row(format, cols, file, &mut words);
    let mut values = vec![0.0; cols];
    unpack_row(format, cols, &words, &mut values);
    values
}

const BLOCKED: [Format; 8] = [
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

#[test]
fn random_blocks_widen_to_the_bits_of_the_gguf_package() {
    let bytes = golden();
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for format in BLOCKED {
        let blocks = file.tensor(&format!("{}.blocks", format.name())).expect("blocks");
        let (values, cols) = floats(&file, &format!("{}.values", format.name()));
        let row_bytes = format.file_row_bytes(cols).expect("whole blocks");
        let rows = blocks.data().chunks_exact(row_bytes);
        assert_eq!(rows.len() * cols, values.len(), "{}", format.name());
        for (row, expected) in rows.zip(values.chunks_exact(cols)) {
            let actual = unpacked(format, row, cols);
            for (at, (a, e)) in actual.iter().zip(expected).enumerate() {
                assert_eq!(a.to_bits(), e.to_bits(), "{} weight {at}: {a} and {e}", format.name());
            }
        }
    }
}

#[test]
fn blocks_of_k_quants_that_were_widened_are_found_again() {
    let bytes = golden();
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for (format, scales) in [(Format::Q4K, 2), (Format::Q5K, 2), (Format::Q6K, 0)] {
        let blocks = file.tensor(&format!("{}.blocks", format.name())).expect("blocks");
        let bytes = format.file_row_bytes(256).expect("a whole block");
        for (at, block) in blocks.data().chunks_exact(bytes).enumerate() {
            let mut block = block.to_vec();
            // No quantiser writes a scale or a minimum below zero.
            (0..scales).for_each(|scale| block[2 * scale + 1] &= 0x7f);
            let first = unpacked(format, &block, 256);
            let again = unpacked(format, &encode_row(format, &first).expect("whole blocks"), 256);
            assert_eq!(again, first, "{} block {at}", format.name());
        }
    }
}

#[test]
fn numbers_of_eight_bits_are_those_of_ml_dtypes() {
    let bytes = golden();
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let numbers = file.tensor("fp8.blocks").expect("bytes");
    let (values, count) = floats(&file, "fp8.values");
    assert_eq!(count, 254);
    for (byte, expected) in numbers.data().iter().zip(&values) {
        assert_eq!(decode_e4m3(*byte).to_bits(), expected.to_bits(), "{byte:#x}");
    }
    // A row with its scale behind it.
    let row = [numbers.data(), &0.5f32.to_le_bytes()].concat();
    let halves: Vec<f32> = values.iter().map(|v| v * 0.5).collect();
    assert_eq!(unpacked(Format::Fp8, &row, 254), halves);
}

/// Mean squared error of the golden weights after our quantiser.
fn error_of(format: Format, weights: &[f32], cols: usize) -> f64 {
    let squares = weights.chunks_exact(cols).flat_map(|row| {
        let back = unpacked(format, &encode_row(format, row).expect("whole blocks"), cols);
        back.into_iter().zip(row).map(|(a, b)| f64::from(a - b).powi(2)).collect::<Vec<_>>()
    });
    squares.sum::<f64>() / weights.len() as f64
}

#[test]
fn quantised_weights_are_as_near_as_those_of_llama_cpp() {
    let bytes = golden();
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (weights, cols) = floats(&file, "weights");
    let errors = std::fs::read(folder().join("errors.json")).expect("the golden file");
    let errors: BTreeMap<String, f64> = serde_json::from_slice(&errors).expect("errors by format");
    assert_eq!(errors.len(), BLOCKED.len());
    for format in BLOCKED {
        let (ours, theirs) = (error_of(format, &weights, cols), errors[format.name()]);
        println!("{}: {ours:.4e}, llama.cpp {theirs:.4e}, ratio {:.4}", format.name(), ours / theirs);
        assert!(ours <= 1.05 * theirs, "{}: {ours:e} over 1.05 times {theirs:e}", format.name());
    }
    // No peer to compare with: three bits of mantissa are an error of at most 1/16 of each weight, but
    // for those far below the largest of their row.
    let fp8 = error_of(Format::Fp8, &weights, cols);
    let power = weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / weights.len() as f64;
    assert!(fp8 > 0.0 && fp8 < power / 256.0, "{fp8:e} of {power:e}");
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused_and_zeros_stay_zeros() {
    for format in Format::ALL {
        let cols = format.block() * 2;
        let zeros = unpacked(format, &encode_row(format, &vec![0.0; cols]).expect("whole blocks"), cols);
        assert!(zeros.iter().all(|v| *v == 0.0), "{}", format.name());
        if format.block() > 1 {
            assert_eq!(encode_row(format, &vec![1.0; cols + 1]), None, "{}", format.name());
            assert_eq!(format.file_row_bytes(cols + 1), None);
        }
    }
}
