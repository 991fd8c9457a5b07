// The command `pupil transmiter`: TransMiter and its baselines on stored features.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_transmiter_command(CLI::App&);
}
