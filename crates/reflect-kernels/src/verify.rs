//! Every kernel on one device against its reference, on awkward sizes: the body of
//! `reflect-run verify`, of the kernel tests, and of the browser's proof page.

mod training;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::{
    Batch, Format, KvFormat, KvLayer, KvShape, PackedMatrix, PairLayout, RopeTable, SequenceRows,
    batch::PAGE,
    device::landed,
    format::{encode_row, pack_row},
    ops::{self, attention::AttentionArgs, embed::EmbedArgs, matmul::MatmulArgs, rope_append::RopeArgs},
};

/// Outcome of one case.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    pub op: &'static str,
    /// Sizes and formats; with `op` it names the case.
    pub case: String,
    /// Squared error over squared reference.
    pub nmse: f64,
    pub max_abs: f64,
    /// Largest `nmse` that passes.
    pub tolerance: f64,
    pub ok: bool,
}

/// Largest NMSE that passes: f32 sums of up to a few thousand terms against f64.
const TOLERANCE: f64 = 1e-11;
/// For caches in f16: WGSL leaves the rounding of `pack2x16float` to the driver, and one step of
/// f16 is 2^-11 of the value.
const TOLERANCE_F16_CACHE: f64 = 3e-7;
/// For caches in bytes: a last bit of the rotation can turn a tie, and one step is 1/127 of the largest
/// value of a line.
const TOLERANCE_Q8_CACHE: f64 = 1e-5;
/// For products that round activations to 16 bits: a step is 2^-15 of the largest of 32 of them.
const TOLERANCE_ROUNDED: f64 = 1e-9;
/// For SwiGLU and attention: WGSL allows exp an error of 3 + 2|x| ulp.
const TOLERANCE_EXP: f64 = 1e-10;

fn cache_tolerance(format: KvFormat) -> f64 {
    match format {
        KvFormat::F32 => TOLERANCE,
        KvFormat::F16 => TOLERANCE_F16_CACHE,
        KvFormat::Q8 => TOLERANCE_Q8_CACHE,
    }
}

/// Squared error over squared reference, and the largest difference. A length that differs or a
/// value that is not finite is an infinite error.
pub fn compare(actual: &[f32], expected: &[f32]) -> (f64, f64) {
    if actual.len() != expected.len() || actual.iter().any(|v| !v.is_finite()) {
        return (f64::INFINITY, f64::INFINITY);
    }
    let (mut error, mut power, mut max_abs) = (0.0, 0.0, 0f64);
    for (a, e) in actual.iter().zip(expected) {
        let difference = f64::from(*a) - f64::from(*e);
        error += difference * difference;
        power += f64::from(*e) * f64::from(*e);
        max_abs = max_abs.max(difference.abs());
    }
    (if error == 0.0 { 0.0 } else { error / power.max(f64::MIN_POSITIVE) }, max_abs)
}

/// Runs all cases on `device`; `progress` is told each finished case.
///
/// # Errors
/// If a result could not be read: the driver's message, with the case.
pub async fn verify(device: &Device, mut progress: impl FnMut(&Row)) -> Result<Vec<Row>, String> {
    let mut check = Check { device, rows: Vec::new(), progress: &mut progress };
    check.embeds().await?;
    check.norms().await?;
    check.products().await?;
    check.fused_products().await?;
    check.attention().await?;
    check.swiglu().await?;
    check.top_k().await?;
    check.training().await?;
    Ok(check.rows)
}

/// The cases of products alone: what a choice of sizes changes (`tune`).
///
/// # Errors
/// As [`verify`].
pub async fn verify_products(device: &Device) -> Result<Vec<Row>, String> {
    let mut check = Check { device, rows: Vec::new(), progress: &mut |_| {} };
    check.products().await?;
    check.fused_products().await?;
    Ok(check.rows)
}

struct Check<'a> {
    device: &'a Device,
    rows: Vec<Row>,
    progress: &'a mut dyn FnMut(&Row),
}

impl Check<'_> {
    fn record(&mut self, op: &'static str, case: String, error: (f64, f64), tolerance: f64) {
        let (nmse, max_abs) = error;
        let row = Row { op, case, nmse, max_abs, tolerance, ok: nmse <= tolerance };
        (self.progress)(&row);
        self.rows.push(row);
    }

    fn product_tolerance(&self, format: Format, tokens: usize) -> f64 {
        match ops::matmul::rounds_activations(self.device, format, tokens) {
            true => TOLERANCE_ROUNDED,
            false => TOLERANCE,
        }
    }

    fn floats<const D: usize>(&self, values: &[f32], shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), self.device)
    }

    async fn embeds(&mut self) -> Result<(), String> {
        for format in Format::ALL {
            for (vocab, cols) in sizes(format, &[(1, 1), (7, 33), (67, 257), (300, 576)]) {
                let (mut matrix, mut words) = self.matrix(format, vocab, cols, 1);
                // A second part, as a table over the binding limit has.
                let (below, below_words) = self.matrix(format, 3, cols, 2);
                matrix.stack(below);
                words.extend(below_words);
                let ids: Vec<u32> = [0, vocab - 1, vocab, vocab + 2, vocab / 2].map(|id| id as u32).into();
                let rope = RopeTable::new(vec![1.0]);
                let rows = SequenceRows { ids: &ids, first_position: 0, pages: &[0] };
                let batch = Batch::new(&[rows], &rope, self.device);
                let actual = read(ops::embed(&matrix, &batch)).await?;
                let args = EmbedArgs { format, tokens: ids.len(), cols, first_row: 0, rows: vocab + 3 };
                let mut expected = vec![f32::NAN; ids.len() * cols];
                ops::embed::reference(&words, &ids, &mut expected, &args);
                let case = format!("{} vocab={vocab} cols={cols}", format.name());
                self.record("embed", case, compare(&actual, &expected), TOLERANCE);
            }
        }
        Ok(())
    }

    async fn norms(&mut self) -> Result<(), String> {
        for (rows, cols) in [(1, 1), (3, 7), (1, 64), (2, 65), (5, 576), (70, 127), (2, 4099)] {
            let (x, r) = (noise(rows * cols, 1, 2.0), noise(rows * cols, 2, 2.0));
            let w = noise(cols, 3, 1.5);
            let (tx, tr) = (self.floats(&x, [rows, cols]), self.floats(&r, [rows, cols]));
            let tw = self.floats(&w, [cols]);
            let case = format!("rows={rows} cols={cols}");
            let plain = read(ops::rms_norm(tx.clone(), tw.clone(), 1e-5)).await?;
            let expected = ops::rms_norm::reference(&x, None, &w, 1e-5).1;
            self.record("rms_norm", case.clone(), compare(&plain, &expected), TOLERANCE);
            let (sum, out) = ops::add_rms_norm(tx, tr, tw, 1e-5);
            let (sum, out) = (read(sum).await?, read(out).await?);
            let expected = ops::rms_norm::reference(&x, Some(&r), &w, 1e-5);
            self.record("add_rms_norm", case.clone() + " sum", compare(&sum, &expected.0), TOLERANCE);
            self.record("add_rms_norm", case, compare(&out, &expected.1), TOLERANCE);
        }
        Ok(())
    }

    async fn products(&mut self) -> Result<(), String> {
        for format in Format::ALL {
            let shapes = sizes(format, &[(1, 1), (17, 31), (65, 96), (67, 257), (131, 576)]);
            // Rows longer than what the CPU multiplies in one pass, and than a chunk of x on a GPU.
            let long = sizes(format, &[(5, 4_127)]).into_iter().map(|shape| (shape, &[1, 66][..]));
            for ((rows, cols), tokens) in
                shapes.into_iter().map(|shape| (shape, &[1, 2, 3, 5, 13, 66][..])).chain(long)
            {
                for &tokens in tokens {
                    // The second part proves that columns land where they belong.
                    let (mut matrix, words) = self.matrix(format, rows, cols, 3);
                    let (below, below_words) = self.matrix(Format::F32, 5, cols, 4);
                    matrix.stack(below);
                    let x = noise(tokens * cols, 5, 1.0);
                    let actual = read(ops::matmul(self.floats(&x, [tokens, cols]), &matrix)).await?;
                    let args = |format, rows| MatmulArgs {
                        format,
                        tokens,
                        rows,
                        cols,
                        out_cols: rows,
                        out_first: 0,
                    };
                    let top = ops::matmul::reference(&x, &words, &args(format, rows));
                    let bottom = ops::matmul::reference(&x, &below_words, &args(Format::F32, 5));
                    let expected: Vec<f32> = top
                        .chunks(rows)
                        .zip(bottom.chunks(5))
                        .flat_map(|(a, b)| a.iter().chain(b).copied())
                        .collect();
                    let case = format!("{} rows={rows} cols={cols} tokens={tokens}", format.name());
                    let tolerance = self.product_tolerance(format, tokens);
                    self.record("matmul", case, compare(&actual, &expected), tolerance);
                }
            }
        }
        Ok(())
    }

    async fn fused_products(&mut self) -> Result<(), String> {
        for format in Format::ALL {
            // Many tokens with a row that may end within a unit, one token and a few: these in a format with
            // offsets and in the one with two scales a unit, as a kernel for them is long to compile.
            let shapes = sizes(format, &[(36, 60), (132, 576), (68, 352)]).into_iter().zip([14, 1, 3]);
            let few = matches!(format, Format::Q4_1 | Format::Q6K);
            for ((rows, cols), tokens) in shapes.take(if few { 3 } else { 2 }) {
                let (matrix, words) = self.matrix(format, rows, cols, 3);
                let (x, norm) = (noise(tokens * cols, 5, 1.0), noise(cols, 6, 1.5));
                let residual = noise(tokens * rows, 7, 2.0);
                let (tx, tn) = (self.floats(&x, [tokens, cols]), self.floats(&norm, [cols]));
                let args = MatmulArgs { format, tokens, rows, cols, out_cols: rows, out_first: 0 };
                let case = format!("{} rows={rows} cols={cols} tokens={tokens}", format.name());

                let normed = ops::rms_norm::reference(&x, None, &norm, 1e-5).1;
                let product = ops::matmul::reference(&normed, &words, &args);
                let actual = read(ops::norm_matmul(tx.clone(), tn.clone(), 1e-5, &matrix)).await?;
                let tolerance = self.product_tolerance(format, tokens);
                self.record("norm_matmul", case.clone(), compare(&actual, &product), tolerance);

                let gated = ops::swiglu::reference(&product, rows / 2);
                let actual = read(ops::norm_matmul_swiglu(tx.clone(), tn, 1e-5, &matrix)).await?;
                // A product of two of them.
                let tolerance = TOLERANCE_EXP.max(4.0 * tolerance);
                self.record("norm_matmul_swiglu", case.clone(), compare(&actual, &gated), tolerance);

                let product = ops::matmul::reference(&x, &words, &args);
                let sum: Vec<f32> = product.iter().zip(&residual).map(|(a, b)| a + b).collect();
                let tr = self.floats(&residual, [tokens, rows]);
                let actual = read(ops::matmul_add(tx, &matrix, tr)).await?;
                let tolerance = self.product_tolerance(format, tokens);
                self.record("matmul_add", case, compare(&actual, &sum), tolerance);
            }
        }
        Ok(())
    }

    /// Queries and cache of a product that appends to an empty cache.
    async fn fused_append_case(
        &mut self,
        kv: KvShape,
        batch: &Batch,
        batch_words: &[u32],
        heads: usize,
        case: &str,
    ) -> Result<(), String> {
        let (cols, tokens) = (64, batch.shape.tokens);
        let rows = (heads + 2 * kv.kv_heads) * kv.head_dim;
        let (matrix, words) = self.matrix(Format::Q8_0, rows, cols, 8);
        let (x, norm) = (noise(tokens * cols, 9, 1.0), noise(cols, 10, 1.5));
        let last = (0..tokens).map(|token| batch_words[2 * tokens + token] as usize).max().unwrap_or(0);
        let mut cache = vec![0u32; (last / PAGE + 1) * kv.page_words()];
        let empty = Tensor::from_data(TensorData::new(vec![0i32; cache.len()], [cache.len()]), self.device);
        let (q, layer) = ops::norm_matmul_rope_append(
            self.floats(&x, [tokens, cols]),
            self.floats(&norm, [cols]),
            1e-5,
            &matrix,
            KvLayer { words: empty, shape: kv },
            batch,
            heads,
        );
        let (q, new_cache) = (read(q).await?, read_words(layer.words).await?);

        let normed = ops::rms_norm::reference(&x, None, &norm, 1e-5).1;
        let args = MatmulArgs { format: Format::Q8_0, tokens, rows, cols, out_cols: rows, out_first: 0 };
        let qkv = ops::matmul::reference(&normed, &words, &args);
        let args = RopeArgs { heads, kv, batch: batch.shape };
        let expected_q = ops::rope_append::reference(&qkv, &mut cache, batch_words, &args);
        let product = self.product_tolerance(Format::Q8_0, tokens);
        self.record("norm_matmul_rope_append", format!("{case} q"), compare(&q, &expected_q), product);
        let (actual, expected) = (cache_floats(&new_cache, &kv), cache_floats(&cache, &kv));
        let (outcome, tolerance) = (compare(&actual, &expected), cache_tolerance(kv.format).max(product));
        self.record("norm_matmul_rope_append", format!("{case} cache"), outcome, tolerance);
        Ok(())
    }

    async fn attention(&mut self) -> Result<(), String> {
        let cases = [
            // (sequences, rows, first position, heads, kv heads, head dim)
            (1, 1, 0, 1, 1, 64),
            (1, 1, 31, 3, 1, 64),
            (1, 7, 0, 4, 4, 80),
            (1, 5, 62, 8, 2, 128),
            (3, 1, 40, 6, 2, 64),
            (2, 3, 33, 4, 1, 8),
            (2, 35, 20, 2, 2, 16),
            (1, 1, 700, 9, 3, 64),
            (1, 40, 300, 2, 1, 64),
        ];
        for (sequences, rows, first, heads, kv_heads, head_dim) in cases {
            for layout in [PairLayout::HalfSplit, PairLayout::Interleaved] {
                // Lines of bytes are whole vectors.
                let formats = [KvFormat::F32, KvFormat::F16, KvFormat::Q8];
                let formats =
                    formats.into_iter().filter(|format| *format != KvFormat::Q8 || head_dim % 16 == 0);
                for format in formats {
                    let kv = KvShape { kv_heads, head_dim, format, layout };
                    let case = format!(
                        "{format:?} {layout:?} seqs={sequences} rows={rows} from={first} heads={heads}/{kv_heads} dim={head_dim}"
                    )
                    .to_lowercase();
                    self.attention_case(kv, sequences, rows, first, heads, case).await?;
                }
            }
        }
        Ok(())
    }

    async fn attention_case(
        &mut self,
        kv: KvShape,
        sequences: usize,
        rows: usize,
        first: usize,
        heads: usize,
        case: String,
    ) -> Result<(), String> {
        let pages_each = (first + rows).div_ceil(PAGE);
        let total = pages_each * sequences + 1;
        // Pages in an order that no formula of positions would give.
        let pages: Vec<u32> = (0..total as u32).rev().collect();
        let ids = vec![0; rows];
        let parts: Vec<SequenceRows<'_>> = (0..sequences)
            .map(|s| SequenceRows {
                ids: &ids,
                // Sequences of one step may stand at different positions.
                first_position: first.saturating_sub(s),
                pages: &pages[s * pages_each..][..pages_each],
            })
            .collect();
        let half = kv.head_dim / 2;
        let rope = RopeTable::new((0..half).map(|i| 0.7f32.powi(i as i32)).collect());
        let batch = Batch::new(&parts, &rope, self.device);
        let batch_words = read_words(batch.data.clone()).await?;
        let tokens = batch.shape.tokens;

        let mut cache = vec![0u32; total * kv.page_words()];
        let fill = noise(cache.len() * 2, 6, 1.0);
        let line = kv.head_words();
        for (i, word) in cache.iter_mut().enumerate() {
            *word = match kv.format {
                KvFormat::F32 => fill[i].to_bits(),
                KvFormat::F16 => {
                    let bits = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
                    bits(fill[2 * i]) | bits(fill[2 * i + 1]) << 16
                }
                // The bytes, the scale, and what nobody reads.
                KvFormat::Q8 if i % line < kv.head_dim / 4 => {
                    fill[i].to_bits() << 8 | fill[2 * i].to_bits() & 0xff
                }
                KvFormat::Q8 => (fill[i].abs() / 127.0).to_bits(),
            };
        }
        let words: Vec<i32> = bytemuck::cast_slice(&cache).to_vec();
        let len = words.len();
        let layer =
            KvLayer { words: Tensor::from_data(TensorData::new(words, [len]), self.device), shape: kv };
        let cols = (heads + 2 * kv.kv_heads) * kv.head_dim;
        let qkv = noise(tokens * cols, 7, 3.0);

        let (q, layer) = ops::rope_append(self.floats(&qkv, [tokens, cols]), layer, &batch, heads);
        let out = read(ops::attention(q.clone(), &layer, &batch, heads)).await?;
        let (q, new_cache) = (read(q).await?, read_words(layer.words).await?);

        let args = RopeArgs { heads, kv, batch: batch.shape };
        let expected_q = ops::rope_append::reference(&qkv, &mut cache, &batch_words, &args);
        self.record("rope_append", format!("{case} q"), compare(&q, &expected_q), TOLERANCE);
        let tolerance = cache_tolerance(kv.format);
        let (actual, expected) = (cache_floats(&new_cache, &kv), cache_floats(&cache, &kv));
        self.record("rope_append", format!("{case} cache"), compare(&actual, &expected), tolerance);

        self.fused_append_case(kv, &batch, &batch_words, heads, &case).await?;

        // From the device's own cache, so that this measures attention alone.
        let args = AttentionArgs { heads, kv, batch: batch.shape };
        let expected = ops::attention::reference(&q, &new_cache, &batch_words, &args);
        self.record("attention", case, compare(&out, &expected), TOLERANCE_EXP);
        Ok(())
    }

    async fn swiglu(&mut self) -> Result<(), String> {
        for (tokens, cols) in [(1, 1), (3, 17), (2, 64), (5, 257), (1, 1536)] {
            let x = noise(tokens * 2 * cols, 8, 12.0);
            let actual = read(ops::swiglu(self.floats(&x, [tokens, 2 * cols]))).await?;
            let expected = ops::swiglu::reference(&x, cols);
            let case = format!("tokens={tokens} cols={cols}");
            self.record("swiglu", case, compare(&actual, &expected), TOLERANCE_EXP);
        }
        Ok(())
    }

    async fn top_k(&mut self) -> Result<(), String> {
        for (tokens, vocab, k) in
            [(1, 1, 1), (1, 2, 5), (3, 255, 1), (2, 257, 5), (1, 4097, 64), (2, 49152, 40)]
        {
            let mut logits = noise(tokens * vocab, 9, 8.0);
            // Equal values, within a chunk and over chunks: the lower id wins.
            let top = 20.0;
            for row in logits.chunks_mut(vocab) {
                for at in [vocab / 3, vocab / 3 + 1, vocab - 1] {
                    row[at.min(vocab - 1)] = top;
                }
            }
            let found = ops::top_k(self.floats(&logits, [tokens, vocab]), k);
            let actual = ops::top_k::read_top_k(found).await?;
            let expected = ops::top_k::reference(&logits, vocab, k);
            let case = format!("tokens={tokens} vocab={vocab} k={k}");
            let flat = |rows: &[ops::top_k::TopK]| -> Vec<f32> {
                rows.iter()
                    .flat_map(|row| {
                        let pairs = row.candidates.iter().flat_map(|(id, v)| [*id as f32, *v]);
                        pairs.chain([row.log_sum_exp]).collect::<Vec<_>>()
                    })
                    .collect()
            };
            self.record("top_k", case, compare(&flat(&actual), &flat(&expected)), TOLERANCE);
        }
        Ok(())
    }

    /// A random matrix in `format` on the device, and its packed words.
    fn matrix(&self, format: Format, rows: usize, cols: usize, seed: u64) -> (PackedMatrix, Vec<u32>) {
        let words = random_words(format, rows, cols, seed);
        (PackedMatrix::new(format, rows, cols, words.clone(), self.device), words)
    }
}

/// Packed rows of random weights in -1..1.
///
/// # Panics
/// If `cols` are no whole blocks of `format`.
pub fn random_words(format: Format, rows: usize, cols: usize, seed: u64) -> Vec<u32> {
    let row_words = format.row_words(cols);
    let mut words = vec![0; rows * row_words];
    for (n, row) in words.chunks_mut(row_words).enumerate() {
        let values = noise(cols, seed.wrapping_mul(1_000_003).wrapping_add(n as u64), 1.0);
        let Some(file) = encode_row(format, &values) else {
            panic!("random_words: {cols} columns are no whole blocks of {}", format.name());
        };
        pack_row(format, cols, &file, row);
    }
    words
}

/// The sizes that `format` can have: blocked formats want columns of whole blocks.
fn sizes(format: Format, wanted: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut sizes: Vec<(usize, usize)> =
        wanted.iter().map(|&(rows, cols)| (rows, cols.next_multiple_of(format.block()))).collect();
    sizes.dedup();
    sizes
}

/// Deterministic values in `-amplitude..amplitude` (splitmix64).
pub fn noise(len: usize, seed: u64, amplitude: f32) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let mut z = seed
                .wrapping_mul(0xd1b5_4a32_d192_ed03)
                .wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            ((z >> 40) as f32 / (1 << 23) as f32 - 1.0) * amplitude
        })
        .collect()
}

fn cache_floats(words: &[u32], kv: &KvShape) -> Vec<f32> {
    match kv.format {
        KvFormat::F32 => words.iter().map(|w| f32::from_bits(*w)).collect(),
        KvFormat::F16 => {
            let half = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
            words.iter().flat_map(|w| [half(*w), half(*w >> 16)]).collect()
        }
        KvFormat::Q8 => words
            .chunks_exact(kv.head_words())
            .flat_map(|line| {
                let (bytes, scale) = line.split_at(kv.head_dim / 4);
                let scale = f32::from_bits(scale[0]);
                bytemuck::cast_slice::<u32, i8>(bytes)
                    .iter()
                    .map(move |b| scale * f32::from(*b))
                    .collect::<Vec<_>>()
            })
            .collect(),
    }
}

async fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, String> {
    let data = landed(tensor.into_data_async().await)?;
    data.try_into_vec().map_err(|error| format!("{error:?}"))
}

async fn read_words(tensor: Tensor<1, Int>) -> Result<Vec<u32>, String> {
    let data = landed(tensor.into_data_async().await)?;
    let words: Vec<i32> = data.try_into_vec().map_err(|error| format!("{error:?}"))?;
    Ok(bytemuck::allocation::cast_vec(words))
}
