// Which network a checkpoint is of, from what it holds.
#pragma once
#include "../models/models.h"

namespace pupil {

// A name of `pupil models`: what the metadata key `model` says where it is such a name; else the
// network whose parameters have the names and shapes of the file's, of several the one whose name
// stands in the file's name (deit_tiny_patch16_224.pth), or that OpenAI's archives need
// (ViT-B-32-quickgelu). Throws InputError: none fits, or several do and nothing decides.
std::string recognise(const data::Weights& weights);  // under our names: models::in_our_names

}  // namespace pupil
