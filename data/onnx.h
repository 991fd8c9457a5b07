// Writes graphs of ONNX (onnx.proto of opset 17, IR version 8), of float32, integer and 8-bit
// tensors.
#pragma once
#include <variant>

#include "../tensor/tensor.h"

namespace pupil::data::onnx {

struct Attribute {
  std::string name;
  std::variant<int64_t, float, std::vector<int64_t>> value;
};

// The first output is the node's name, too. An empty input is one left out.
struct Node {
  std::string type;
  std::vector<std::string> inputs, outputs;
  std::vector<Attribute> attributes;
};

struct Initializer {
  std::string name;
  Tensor value;  // contiguous, on the CPU
};

// An input or output of the graph.
struct Port {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape{};  // -1: the size of the batch
};

struct Graph {
  std::string name;
  std::vector<Node> nodes;  // each after those whose outputs it reads
  std::vector<Initializer> initializers;
  std::vector<Port> inputs, outputs;
  std::vector<std::pair<std::string, std::string>> metadata;
};

// No message of protobuf may reach 2 GiB.
inline constexpr int64_t kLargest = (int64_t(1) << 31) - (int64_t(1) << 24);

// The file is there whole or not at all. Initializers that hold more than `largest` bytes together
// go into PATH.data beside it, as ONNX's external data; integers, which tell shapes, stay. Errors
// as FileWriter's.
void save(const std::string& path, const Graph&, int64_t largest = kLargest);

}  // namespace pupil::data::onnx
