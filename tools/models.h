// pupil models: the networks that a configuration can name.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_models_command(CLI::App&);
}
