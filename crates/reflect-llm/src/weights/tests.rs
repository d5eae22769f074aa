use super::extended::encode;
use super::testing::Tensors;
use super::*;

fn tiny() -> LlamaConfig {
    let mut config = LlamaConfig::by_name("smollm2-135m").unwrap();
    config.num_hidden_layers = 2;
    config.vocab_size = 10;
    config.attention_bias = true;
    config.tie_word_embeddings = false;
    config
}

#[test]
fn row_bytes_follow_the_block_formats() {
    assert_eq!(Format::Q4_1.file_row_bytes(64), Some(40));
    assert_eq!(Format::Q4_0.file_row_bytes(33), None);
    assert_eq!(Format::F32.file_row_bytes(usize::MAX), None);
}

#[test]
fn shapes_are_checked_against_the_configuration() {
    let config = tiny();
    let mut source = Tensors::of(expected_shapes(&config), Format::Bf16);
    assert_eq!(check_shapes(&config, &source), Ok(()));

    source.0.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().0.shape = vec![576, 1536];
    let error = check_shapes(&config, &source).unwrap_err().to_string();
    assert!(error.contains("mlp.up_proj.weight"), "{error}");
    assert!(error.contains("[576, 1536]") && error.contains("[1536, 576]"), "{error}");

    source.0.remove("model.layers.0.self_attn.q_proj.bias");
    let error = check_shapes(&config, &source).unwrap_err();
    assert!(matches!(error, LoadError::MissingTensor { .. }), "{error}");
}

#[test]
fn extended_rows_are_the_mean_and_join_the_source() {
    let shape = vec![("model.embed_tokens.weight".to_string(), vec![3, 2])];
    for format in [Format::F32, Format::F16, Format::Bf16] {
        let mut source = Tensors::of(shape.clone(), format);
        let rows = [1.0, 2.0, 3.0, 4.0, 8.0, 0.0];
        let bytes: Vec<u8> = rows.iter().flat_map(|&v| encode(format, v)).collect();
        source.0.get_mut("model.embed_tokens.weight").unwrap().1 = bytes.clone();
        let source = ready(ExtendedVocabulary::new(source, 2)).unwrap();

        let name = "model.embed_tokens.weight";
        assert_eq!(source.info(name).unwrap().shape, [5, 2]);
        assert_eq!(source.total_bytes(), 10 * format.file_row_bytes(1).unwrap() as u64);
        let mean: Vec<u8> = [4.0, 2.0, 4.0, 2.0].iter().flat_map(|&v| encode(format, v)).collect();
        let all = [bytes, mean].concat();
        let row = 2 * format.file_row_bytes(1).unwrap();
        for start in 0..=5 {
            for end in start..=5 {
                let read = ready(source.read(name, start..end)).unwrap();
                assert_eq!(&*read, &all[start * row..end * row], "{start}..{end}");
            }
        }
        assert!(ready(source.read(name, 0..6)).is_err());
    }
    let packed = Tensors::of(vec![("lm_head.weight".into(), vec![2, 32])], Format::Q4_0);
    assert!(ready(ExtendedVocabulary::new(packed, 6)).is_err());
}
