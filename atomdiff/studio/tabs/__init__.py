"""The tabs of the studio, one file each: components and events, no logic."""
