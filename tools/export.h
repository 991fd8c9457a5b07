#pragma once
#include "../models/models.h"

namespace CLI {
class App;
}

namespace pupil {

struct ExportOptions {
  bool with_preprocess = false;            // 8-bit pixels go in, the network normalises them
  std::vector<std::string> class_names{};  // empty: unknown
};

// Writes the network as an ONNX file (onnx_graph.h; data/onnx.h for the errors); what its images
// must look like and the names of the classes become metadata. Nothing is left half-written.
void export_onnx(const std::string& path, const models::Model&, const nn::Store&,
                 const ExportOptions& = {});

void add_export_command(CLI::App& app);

}  // namespace pupil
