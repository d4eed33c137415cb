// An ADXL345 as its data sheet (Rev. G) describes it: rate, range and FIFO as they were set, on I2C.
#include "adxl345.h"

static Adxl345 sensor(3.7, 0.2);

void plug_in() { simulation::i2c[0x53] = &sensor; }
