// pupil reproduce: published results run again and judged; one file of tools/reproduce each.
#pragma once

namespace CLI {
class App;
}

namespace pupil {

void add_reproduce_command(CLI::App&);

}  // namespace pupil
