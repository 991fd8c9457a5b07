// A network as a configuration or a command line names it: built, its weights read.
#pragma once
#include "../models/clip.h"
#include "config.h"

namespace pupil {

struct Network {
  std::unique_ptr<nn::Store> store;
  models::Model model;                           // with the preprocessing that its images need
  std::shared_ptr<const data::Weights> weights;  // its file; null: there is none
  std::vector<std::string> class_names;          // as the file says; empty: it does not
  std::optional<models::Clip> clip{};            // both towers, where texts were asked for
};

// Class names as the classifier of CLIP.
struct ZeroShot {
  std::vector<std::string> classes;
  std::vector<std::string> templates{"a photo of a {}."};  // more: their features are averaged
  std::string vocabulary;                                  // "": a file beside the weights
  bool towers = false;                                     // Network::clip, without classes, too
};

// A frozen network for inference: a teacher, or one to evaluate. The model's name and classes come
// from the file when the configuration does not say; without a classifier in the file it has no
// classes, and its logits are the features. With `classes` of a ZeroShot its logits are cosines to
// these texts times the network's scale. Throws InputError.
Network load_network(const NetworkConfig&, const ZeroShot& = {});
// Features of the class names in the templates, (names, templates, width); the vocabulary may lie
// beside the weights.
Tensor text_features(const models::Clip&, const ZeroShot&, const std::string& weights);
// MODEL:CHECKPOINT, or the checkpoint of a run, which knows its model.
NetworkConfig parse_network(const std::string& text);
// The network to train.
Network make_student(const StudentConfig&, int64_t classes, uint64_t seed);

bool finite(const Tensor& parameter);  // on the host

// Float arrays go into a network as they are: throws InputError for ones that it cannot take.
// (8-bit images are fitted or refused by the loader.)
void require_input(const models::Model&, const data::Dataset&);

// What a checkpoint says of its network, so that it can be loaded without its run.
std::map<std::string, std::string> network_metadata(const models::Model&);

}  // namespace pupil
