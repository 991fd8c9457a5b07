// What is done with a checkpoint whose network need not be known: statistics, and other containers.
#pragma once
#include "weights.h"

namespace pupil::data {

struct Statistics {
  int64_t nan = 0, infinite = 0, zero = 0;              // counts
  double least = 0, most = 0, mean = 0, deviation = 0;  // of the finite values; of none: 0
};
// A tensor in one pass over the stored values; nothing is loaded.
Statistics statistics_of(const Weights&, const TensorInfo&);

// Every tensor under its name with its values as stored, or with floating ones as `dtype` ("F64",
// "F32", "F16", "BF16"; "": as stored). The target decides the container: FILE.safetensors and
// FILE.npz, else a folder as Hugging Face has them, model.safetensors and the settings
// (config.json, ...) that came with the weights. Whole or absent. Throws InputError for a folder
// that is not empty, a value that f16 does not hold, a type that NumPy does not have.
void convert_weights(const Weights&, const std::string& target, const std::string& dtype = "");

}  // namespace pupil::data
