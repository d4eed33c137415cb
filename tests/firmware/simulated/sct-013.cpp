// A transformer of 1 V at 30 A around a conductor of 50 Hz, in the middle of a converter of 3.3 V that is not quite the middle.
#include "../simulation.h"

static double volts() {
  double t = simulation::now_s(), amperes = 5 + 3 * floor(t / 0.2) / 10;
  if (simulation::fault("overload")) amperes = 60;
  double wave = sin(314.159265358979 * t) + 0.2 * sin(3 * 314.159265358979 * t);
  return (1.68 + amperes / 30 * sqrt(2.0) * wave) / 3.3;
}

void plug_in() { simulation::analog[A0] = volts; }
