// pupil diff: compare two files of named tensors.
#pragma once

namespace CLI {
class App;
}

namespace pupil {

void add_diff_command(CLI::App&);

}  // namespace pupil
