// pupil predict: what a network sees in photographs.
#pragma once

namespace CLI {
class App;
}

namespace pupil {

void add_predict_command(CLI::App& app);

}  // namespace pupil
