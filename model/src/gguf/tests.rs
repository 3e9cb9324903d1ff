use std::path::PathBuf;

use super::*;

/// A GGUF file written byte by byte.
#[derive(Default)]
struct Writer {
    keys: Vec<u8>,
    num_keys: u64,
    table: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

impl Writer {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        self.keys.extend(text(name));
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.num_keys += 1;
    }

    fn u32(&mut self, name: &str, value: u32) {
        self.key(name, 4, &value.to_le_bytes());
    }

    fn text(&mut self, name: &str, value: &str) {
        self.key(name, 8, &text(value));
    }

    fn texts(&mut self, name: &str, values: &[&str]) {
        let mut bytes = [
            8u32.to_le_bytes().as_slice(),
            &(values.len() as u64).to_le_bytes(),
        ]
        .concat();
        values.iter().for_each(|value| bytes.extend(text(value)));
        self.key(name, 9, &bytes);
    }

    fn tensor(&mut self, name: &str, dims: &[u64], code: u32, data: &[u8]) {
        self.row(name, dims, code, self.data.len() as u64);
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(32), 0xee);
    }

    fn row(&mut self, name: &str, dims: &[u64], code: u32, offset: u64) {
        self.table.extend(text(name));
        self.table.extend((dims.len() as u32).to_le_bytes());
        dims.iter()
            .for_each(|dim| self.table.extend(dim.to_le_bytes()));
        self.table.extend(code.to_le_bytes());
        self.table.extend(offset.to_le_bytes());
        self.num_tensors += 1;
    }

    fn bytes(&self, version: u32) -> Vec<u8> {
        let mut bytes = [b"GGUF".as_slice(), &version.to_le_bytes()].concat();
        bytes.extend(self.num_tensors.to_le_bytes());
        bytes.extend(self.num_keys.to_le_bytes());
        bytes.extend(&self.keys);
        bytes.extend(&self.table);
        bytes.resize(bytes.len().next_multiple_of(32), 0xee);
        bytes.extend(&self.data);
        bytes
    }
}

fn f32s(values: impl IntoIterator<Item = i32>) -> Vec<u8> {
    let values = values.into_iter();
    values
        .flat_map(|value| (value as f32).to_le_bytes())
        .collect()
}

/// Hidden 32, one layer, 2 query heads and 1 key/value head of width 4, vocabulary 3.
fn tiny() -> Writer {
    let mut file = Writer::default();
    file.text("general.architecture", "llama");
    file.u32("llama.block_count", 1);
    file.u32("llama.context_length", 128);
    file.u32("llama.embedding_length", 32);
    file.u32("llama.feed_forward_length", 32);
    file.u32("llama.attention.head_count", 2);
    file.u32("llama.attention.head_count_kv", 1);
    file.u32("llama.attention.key_length", 4);
    file.key(
        "llama.attention.layer_norm_rms_epsilon",
        6,
        &1e-5f32.to_le_bytes(),
    );
    file.key("llama.rope.freq_base", 6, &100000f32.to_le_bytes());
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "smollm");
    file.texts("tokenizer.ggml.tokens", &["a", "b", "<end>"]);
    file.texts("tokenizer.ggml.merges", &[]);
    let types = [
        5u32.to_le_bytes().as_slice(),
        &3u64.to_le_bytes(),
        &f_i32([1, 1, 3]),
    ]
    .concat();
    file.key("tokenizer.ggml.token_type", 9, &types);
    file.u32("tokenizer.ggml.eos_token_id", 2);

    // Q8_0, row r: scale 1, q = r, r, ...
    let embedding: Vec<u8> = (0..3u8)
        .flat_map(|row| [vec![0x00, 0x3c], vec![row; 32]].concat())
        .collect();
    file.tensor("token_embd.weight", &[32, 3], 8, &embedding);
    file.tensor("output_norm.weight", &[32], 0, &f32s(0..32));
    file.tensor("blk.0.attn_norm.weight", &[32], 0, &f32s(0..32));
    // Row r is r, r, ...: shows where a row goes.
    let rows = |n: i32| f32s((0..n).flat_map(|row| [row; 32]));
    file.tensor("blk.0.attn_q.weight", &[32, 8], 0, &rows(8));
    file.tensor("blk.0.attn_k.weight", &[32, 4], 0, &rows(4));
    file.tensor("blk.0.attn_v.weight", &[32, 4], 0, &rows(4));
    file
}

fn f_i32(values: [i32; 3]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn open(&self, bytes: &[u8]) -> Result<GgufFile, WeightError> {
        let path = self.0.path().join("tiny.gguf");
        std::fs::write(&path, bytes).unwrap();
        GgufFile::open(&path)
    }

    fn error(&self, bytes: &[u8]) -> String {
        self.open(bytes).unwrap_err().to_string()
    }
}

fn first_column(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.select(1, 0)).unwrap()
}

#[test]
fn config_comes_from_the_metadata() {
    let folder = Folder::new();
    for version in [2, 3] {
        let config = folder
            .open(&tiny().bytes(version))
            .unwrap()
            .config()
            .unwrap();
        let expected = ModelConfig {
            vocab_size: 3,
            hidden_size: 32,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            rms_norm_eps: 1e-5,
            rope_theta: 100000.0,
            max_position_embeddings: 128,
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_ids: vec![2],
            ..ModelConfig::sizeless_llama()
        };
        assert_eq!(config, expected);
    }
    let mut untied = tiny();
    untied.tensor("output.weight", &[32, 3], 0, &f32s(0..96));
    assert!(
        !folder
            .open(&untied.bytes(3))
            .unwrap()
            .config()
            .unwrap()
            .tie_word_embeddings
    );
}

#[test]
fn query_and_key_rows_return_to_half_split_order() {
    let mut file = Folder::new().open(&tiny().bytes(3)).unwrap();
    let prefix = "model.layers.0.self_attn";
    // Within a head of width 4, llama.cpp's rows (0, 1), (2, 3) are Hugging Face's (0, 2), (1, 3).
    let q = file
        .tensor(&format!("{prefix}.q_proj.weight"), &[8, 32])
        .unwrap();
    assert_eq!(first_column(&q), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let k = file
        .tensor(&format!("{prefix}.k_proj.weight"), &[4, 32])
        .unwrap();
    assert_eq!(first_column(&k), [0.0, 2.0, 1.0, 3.0]);
    let v = file
        .tensor(&format!("{prefix}.v_proj.weight"), &[4, 32])
        .unwrap();
    assert_eq!(first_column(&v), [0.0, 1.0, 2.0, 3.0]);
    let embedding = file.tensor("model.embed_tokens.weight", &[3, 32]).unwrap();
    assert_eq!(first_column(&embedding), [0.0, 1.0, 2.0]);
    let norm = file.tensor("model.norm.weight", &[32]).unwrap();
    assert_eq!(norm.double_value(&[31]), 31.0);
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let mut file = Folder::new().open(&tiny().bytes(3)).unwrap();
    let missing = file.tensor("lm_head.weight", &[3, 32]).unwrap_err();
    assert!(matches!(&missing, WeightError::Missing { name, .. } if name == "lm_head.weight"));
    let shape = file.tensor("model.norm.weight", &[16]).unwrap_err();
    let WeightError::Shape {
        found, expected, ..
    } = shape
    else {
        panic!("{shape}")
    };
    assert_eq!((found, expected), (vec![32], vec![16]));
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    let folder = Folder::new();
    let whole = tiny().bytes(3);
    assert!(folder.open(&whole).is_ok());
    // The padding after the last tensor, 0 bytes here, may be missing; nothing else.
    for len in 0..whole.len() {
        let error = folder.error(&whole[..len]);
        assert!(error.contains("download it again"), "{len}: {error}");
    }
    let error = folder.error(&whole[..whole.len() - 1]);
    let expected = format!(
        "the file ends at byte {}, tensor 'blk.0.attn_v.weight' needs {}: download it again",
        whole.len() - 1,
        whole.len()
    );
    assert!(error.ends_with(&expected), "{error}");
}

#[test]
fn a_damaged_byte_never_panics() {
    let folder = Folder::new();
    let whole = tiny().bytes(3);
    let header = whole.len() - tiny().data.len();
    let mut refused = 0;
    for position in 0..header {
        for value in [0x00, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[position] = value;
            match folder.open(&bytes) {
                Err(_) => refused += 1,
                Ok(mut file) => {
                    let _ = (file.config(), file.tokenizer());
                    let _ = file.tensor("model.layers.0.self_attn.q_proj.weight", &[8, 32]);
                }
            }
        }
    }
    assert!(refused > 500, "only {refused} damaged headers were refused");
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    let folder = Folder::new();
    let mut file = tiny();
    file.num_tensors = u64::MAX;
    assert!(
        folder
            .error(&file.bytes(3))
            .contains("18446744073709551615 entries for tensors")
    );
    let mut file = tiny();
    file.num_keys = 1 << 40;
    assert!(
        folder
            .error(&file.bytes(3))
            .contains("entries for metadata keys")
    );
    let mut file = tiny();
    let list = [8u32.to_le_bytes().as_slice(), &(1u64 << 60).to_le_bytes()].concat();
    file.key("long.list", 9, &list);
    assert!(
        folder
            .error(&file.bytes(3))
            .contains("entries for long.list")
    );
    let mut file = tiny();
    file.key("long.text", 8, &u64::MAX.to_le_bytes());
    assert!(
        folder
            .error(&file.bytes(3))
            .contains("more than any file has")
    );
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    let folder = Folder::new();
    let with_row = |dims: &[u64], code: u32, offset: u64| {
        let mut file = tiny();
        file.row("blk.0.ffn_up.weight", dims, code, offset);
        folder.error(&file.bytes(3))
    };
    assert!(with_row(&[32], 14, 0).contains("'blk.0.ffn_up.weight' has type 14"));
    assert!(with_row(&[32], 0, 8).contains("no multiple of 32"));
    assert!(with_row(&[32], 0, 1 << 40).contains("the file ends at byte"));
    assert!(with_row(&[32], 0, u64::MAX - 31).contains("more than any file has"));
    assert!(with_row(&[48], 3, 0).contains("can't have the dimensions [48]"));
    assert!(with_row(&[1 << 40, 1 << 40], 0, 0).contains("can't have the dimensions"));
    assert!(with_row(&[32; 5], 0, 0).contains("5 dimensions"));
    assert!(with_row(&[], 0, 0).contains("0 dimensions"));
    let mut twice = tiny();
    twice.row("blk.0.attn_v.weight", &[32, 4], 0, 0);
    assert!(folder.error(&twice.bytes(3)).contains("listed twice"));
    let mut kind = tiny();
    kind.key("odd", 13, &[]);
    assert!(
        folder
            .error(&kind.bytes(3))
            .contains("'odd' has the unknown type 13")
    );

    assert!(folder.error(&tiny().bytes(1)).contains("GGUF version 1"));
    assert!(
        folder
            .error(&tiny().bytes(3u32.swap_bytes()))
            .contains("big-endian")
    );
    assert!(
        folder
            .error(b"PK\x03\x04 and more")
            .contains("not a GGUF file")
    );
}

#[test]
fn features_that_are_not_supported_are_refused_by_name() {
    let folder = Folder::new();
    let refusal = |change: &dyn Fn(&mut Writer)| {
        let mut file = tiny();
        change(&mut file);
        let file = folder.open(&file.bytes(3)).unwrap();
        file.config().unwrap_err().to_string()
    };
    assert!(refusal(&|f| f.u32("llama.expert_count", 8)).contains("mixture of experts"));
    assert!(refusal(&|f| f.text("general.architecture", "gemma")).contains("'gemma'"));
    assert!(refusal(&|f| f.text("llama.rope.scaling.type", "yarn")).contains("'yarn'"));
    assert!(refusal(&|f| f.u32("llama.rope.dimension_count", 2)).contains("part of a head"));
    assert!(refusal(&|f| f.u32("llama.attention.head_count_kv", 3)).contains("does not divide"));
    let bias = |f: &mut Writer| f.tensor("blk.0.attn_q.bias", &[8], 0, &f32s(0..8));
    assert!(refusal(&bias).contains("'blk.0.attn_q.bias'"));
    let rope = |f: &mut Writer| f.tensor("rope_freqs.weight", &[2], 0, &f32s(0..2));
    assert!(refusal(&rope).contains("'rope_freqs.weight'"));
}

fn smollm2() -> GgufFile {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    GgufFile::open(&path).unwrap_or_else(|error| panic!("{error}: run scripts/setup.sh first"))
}

/// Values made by the Python packages gguf (dequantize) and numpy, from the same file.
#[test]
fn smollm2_has_the_weights_that_the_reference_reader_finds() {
    let mut file = smollm2();
    let config = file.config().unwrap();
    assert_eq!(config.num_parameters(), 134_515_008);
    assert_eq!((config.num_hidden_layers, config.head_dim), (30, 64));
    assert_eq!((config.rope_theta, config.rms_norm_eps), (1e5, 1e-5));
    assert_eq!(
        (config.bos_token_id, config.eos_token_ids),
        (Some(1), vec![2])
    );

    type Case<'a> = (&'a str, &'a [i64], f64, f64, &'a [(i64, i64, f64)]);
    let cases: [Case; 5] = [
        (
            "model.embed_tokens.weight",
            &[49152, 576],
            -15353.04449415207,
            520415.71544764005,
            &[
                (0, 0, -0.10654449462890625),
                (1, 5, -0.0079345703125),
                (49151, 575, -0.0417022705078125),
                (9906, 100, -0.06243133544921875),
            ],
        ),
        (
            "model.layers.0.self_attn.q_proj.weight",
            &[576, 576],
            59.22322082519531,
            26749.573275085306,
            &[
                (0, 0, -0.0963134765625),
                (1, 0, -0.1591796875),
                (33, 7, -0.1319580078125),
                (575, 575, -0.255859375),
                (100, 3, -0.2274169921875),
            ],
        ),
        (
            "model.layers.29.self_attn.k_proj.weight",
            &[192, 576],
            87.89241790771484,
            1902.811550046259,
            &[
                (0, 0, 0.062408447265625),
                (31, 8, -0.19415283203125),
                (32, 8, 0.1593017578125),
                (191, 100, 1.15594482421875),
            ],
        ),
        (
            "model.layers.7.self_attn.v_proj.weight",
            &[192, 576],
            61.694580078125,
            3214.9204137688503,
            &[(1, 1, -0.1177978515625), (100, 500, 0.009796142578125)],
        ),
        (
            "model.layers.12.mlp.down_proj.weight",
            &[576, 1536],
            145.06800842285156,
            33909.57359777042,
            &[(3, 1535, 0.22015380859375), (400, 16, -0.130126953125)],
        ),
    ];
    for (name, shape, sum, sum_of_squares, values) in cases {
        let tensor = file.tensor(name, shape).unwrap();
        for &(row, column, value) in values {
            assert_eq!(
                tensor.double_value(&[row, column]),
                value,
                "{name} [{row}, {column}]"
            );
        }
        let tensor = tensor.to_kind(kernels::tch::Kind::Double);
        let total = |t: Tensor| t.sum(None).double_value(&[]);
        let squares = total(&tensor * &tensor);
        assert!(
            (total(tensor) - sum).abs() < 1e-7 * sum_of_squares,
            "{name}: sum"
        );
        assert!(
            (squares / sum_of_squares - 1.0).abs() < 1e-9,
            "{name}: squares"
        );
    }
    let norm = file.tensor("model.norm.weight", &[576]).unwrap();
    assert_eq!(
        (norm.double_value(&[0]), norm.double_value(&[575])),
        (1.7578125, 1.984375)
    );
}

/// Ids made by transformers with the tokenizer rebuilt by the Python package tokenizers.
#[test]
fn smollm2_tokenizes_as_transformers_does() {
    let tokenizer = smollm2().tokenizer().unwrap();
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(tokenizer.bos_token(), Some("<|im_start|>"));
    assert_eq!(tokenizer.eos_token(), Some("<|im_end|>"));
    let cases: [(&str, &[u32]); 6] = [
        (
            "Hello, world! 12345 + 67 = ?",
            &[
                19556, 28, 905, 17, 216, 33, 34, 35, 36, 37, 1232, 216, 38, 39, 446, 9148,
            ],
        ),
        (
            "  two  spaces\n\nnew\tline 日本語 naïve 🐋",
            &[
                216, 827, 216, 5600, 198, 198, 2241, 197, 1311, 17097, 241, 115, 40993, 179, 120,
                248, 15486, 46494, 15107, 234, 229,
            ],
        ),
        (
            "<|im_start|>user\nhi<|im_end|>\n",
            &[1, 4093, 198, 6004, 2, 198],
        ),
        ("don't you'll I've", &[12420, 982, 346, 3060, 339, 3543]),
        ("3.14159 x²", &[35, 30, 33, 36, 33, 37, 41, 1792, 19133]),
        ("", &[]),
    ];
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(text), ids, "{text}");
        let without_specials = text.replace("<|im_start|>", "").replace("<|im_end|>", "");
        assert_eq!(tokenizer.decode(ids), without_specials);
    }
    use crate::chat::{ChatOptions, Message};
    let options = ChatOptions::default();
    let question = [Message::user("What is 2 + 3?")];
    assert_eq!(
        tokenizer.chat(&question, &options).unwrap(),
        [
            1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411,
            407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 216, 34, 1232, 216, 35, 47, 2, 198,
            1, 520, 9531, 198
        ]
    );
    let conversation = [
        Message::system("Be brief."),
        Message::user("Hi"),
        Message::assistant("Hello!"),
    ];
    assert_eq!(
        tokenizer.chat(&conversation, &options).unwrap(),
        [
            1, 9690, 198, 6077, 5453, 30, 2, 198, 1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198,
            19556, 17, 2, 198
        ]
    );
}
