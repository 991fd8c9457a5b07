// What a teacher says of every sample, stored once; the command `pupil features`.
#pragma once
#include "../data/data.h"

namespace CLI {
class App;
}

namespace pupil {

struct FeaturePass {
  std::string tap = "logits";  // logits, features, or a tap of the model, stored flat
  std::string out;
  data::FeatureHeader header;  // what describes the model and the view; the rest is filled in
  data::LoaderOptions loader;  // batch, workers; for a view above 0 its augmentation and seed
  // May be empty. goes_on: rows that an earlier call left. progress: samples of this call.
  std::function<void(int64_t rows)> goes_on;
  std::function<void(int64_t done, int64_t left)> progress;
  std::function<bool()> stop;  // asked after every batch
};
// Writes pass.out. Rows are kept in OUT.partial as they come, and a later call goes on behind them.
// False when `stop` ended it. Throws InputError as write_features does.
bool store_features(const models::Model&, const data::Dataset&, FeaturePass);

void add_features_command(CLI::App&);

}  // namespace pupil
