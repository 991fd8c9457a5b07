// A network as a graph of ONNX: what its forward pass does is heard (autograd's Listener) and
// written down with standard operators.
#pragma once
#include "../data/onnx.h"
#include "../models/clip.h"

namespace pupil {

// The network in evaluation, at the side model.input.size, for batches of any size. Input "images"
// f32 (batch, channels, side, side), normalised; or with_preprocess "pixels" u8 (batch, side, side,
// channels); or "rows" f32 (batch, inputs) of a network that takes rows. Output "logits" (batch,
// classes), of a network without a classifier "features". What depends on no image is a constant:
// a parameter keeps its name; a value computed from parameters has the name of the first of them
// and ".computed" behind it.
//
// The pass is run twice, with other images and another batch size. What differs where it must not
// is an Error that names the op: an op in between did not announce itself, or decides by values.
data::onnx::Graph onnx_graph(const models::Model&, const nn::Store&, bool with_preprocess);

// The text tower: "ids" i64 (batch, context), padded with zeros -> "features" (batch, width), not
// normalised.
data::onnx::Graph onnx_text_graph(const models::Clip&, const nn::Store&);

}  // namespace pupil
