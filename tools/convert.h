// pupil convert: a checkpoint in another container.
#pragma once

namespace CLI {
class App;
}

namespace pupil {

void add_convert_command(CLI::App& app);

}  // namespace pupil
