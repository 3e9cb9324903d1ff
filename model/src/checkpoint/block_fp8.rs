//! FP8 weights with a scale a block, as DeepSeek publishes them (DeepSeek-V3 report, 3.3; FP8 = e4m3).
//!
//! W[i, j] = q[i, j] * s[i / R, j / C],   q [out, in] e4m3,   s [ceil(out / R), ceil(in / C)],
//! blocks of R x C = `quantization_config.weight_block_size`; those at the lower and right edge may
//! be partial. Despite its name `weight_scale_inv` multiplies. A tensor is such a weight when its
//! type is F8_E4M3, whatever it is called; then `<its name>_scale_inv` must be there.

use kernels::tch::{Device, Kind, Tensor};

use super::malformed;
use super::safetensors_file::SafetensorsFile;
use crate::weights::WeightError;

/// Rows and columns of a block.
pub(super) type BlockSize = [usize; 2];

/// Name of the scales of the FP8 tensor `name`.
pub(super) fn scale_name(name: &str) -> String {
    format!("{name}_scale_inv")
}

/// Shape of the scales of a weight of shape `[out, in]`.
pub(super) fn scale_shape(shape: &[i64], block: BlockSize) -> Vec<i64> {
    let blocks = |n: i64, size: usize| (n as usize).div_ceil(size) as i64;
    vec![blocks(shape[0], block[0]), blocks(shape[1], block[1])]
}

/// What is wrong with the weight `name` of `file` and its scales in `scale_file`, as their headers say,
/// and which file says so.
///
/// # Errors
/// Not a matrix, or scales of another shape or in FP8 themselves.
pub(super) fn check(
    file: &SafetensorsFile,
    name: &str,
    scale_file: &SafetensorsFile,
    block: BlockSize,
) -> Result<(), WeightError> {
    let shape = file.shape(name);
    if shape.len() != 2 {
        return Err(malformed(
            file.path(),
            format!(
                "tensor '{name}' is in FP8 and has shape {shape:?}; block scales are for matrices"
            ),
        ));
    }
    let scale_name = scale_name(name);
    let (found, expected) = (scale_file.shape(&scale_name), scale_shape(&shape, block));
    if found == expected && !scale_file.is_fp8(&scale_name) {
        return Ok(());
    }
    Err(malformed(
        scale_file.path(),
        format!(
            "tensor '{scale_name}' has shape {found:?}; the scales of '{name}' {shape:?} in \
             blocks of {} x {} are F32 of shape {expected:?}",
            block[0], block[1]
        ),
    ))
}

/// The weight `name` of `file`, times its scales in `scale_file`, as f32 `[out, in]`. A row of
/// blocks is in memory besides the result.
///
/// # Errors
/// What [`check`] finds, or a file that can't be read.
pub(super) fn read(
    file: &SafetensorsFile,
    name: &str,
    scale_file: &SafetensorsFile,
    block: BlockSize,
) -> Result<Tensor, WeightError> {
    check(file, name, scale_file, block)?;
    let shape = file.shape(name);
    let num_columns = shape[1];
    let scales = scale_file.read(&scale_name(name))?;
    let values = Tensor::empty(&shape, (Kind::Float, Device::Cpu));
    let (rows, columns) = (block[0] as i64, (block[1] as i64).min(num_columns));
    let piece_len = block[0].saturating_mul(num_columns as usize).max(1);
    file.read_pieces(name, piece_len, |first, piece| {
        let first = first / num_columns;
        let quantised = piece.to_kind(Kind::Float).view([-1, num_columns]);
        let scale = scales
            .select(0, first / rows)
            .repeat_interleave_self_int(columns, 0, None)
            .narrow(0, 0, num_columns);
        values
            .narrow(0, first, quantised.size()[0])
            .copy_(&(quantised * scale));
    })?;
    Ok(values)
}
