"""The documented memory manager."""

from kos._default import default_machine
from kos.exceptions import KOSError, MemoryError
from kos.machine import Machine
from kos.memory import constants
from kos.memory.constants import ENXIO

__all__ = ["MemoryManager"]


class MemoryManager:
    """The memory of a running machine, from above.

    Args:
        machine: The machine; the default one, booted on first use, when left out.

    Example:
        >>> mgr = MemoryManager()
        >>> mgr.initialize()
        True
        >>> mgr.free_memory < mgr.total_memory
        True
    """

    PROT_NONE = constants.PROT_NONE
    PROT_READ = constants.PROT_READ
    PROT_WRITE = constants.PROT_WRITE
    PROT_EXEC = constants.PROT_EXEC
    PROT_RW = constants.PROT_RW
    PROT_RWX = constants.PROT_RWX
    MAP_SHARED = constants.MAP_SHARED
    MAP_PRIVATE = constants.MAP_PRIVATE
    MAP_ANONYMOUS = constants.MAP_ANONYMOUS
    MAP_FIXED = constants.MAP_FIXED
    MAP_GROWSDOWN = constants.MAP_GROWSDOWN
    MAP_LOCKED = constants.MAP_LOCKED
    MAP_POPULATE = constants.MAP_POPULATE

    def __init__(self, machine: Machine | None = None) -> None:
        self._given = machine

    @property
    def machine(self) -> Machine:
        """The machine that this manager works on; booted now if it is not running yet."""
        return self._given or default_machine()

    def initialize(self) -> bool:
        """Make sure that the machine runs and answers.

        Returns:
            True.

        Raises:
            MemoryError: The machine cannot be booted, or does not answer.
        """
        try:
            self.machine.client.ping(0)
        except KOSError as error:
            raise MemoryError(f"no machine: {error.message}", errno=ENXIO) from error
        return True

    @property
    def total_memory(self) -> int:
        """RAM of the machine, in bytes, as its memory map has it."""
        return self.machine.client.machine_info().total_bytes

    @property
    def free_memory(self) -> int:
        """Free RAM, in bytes."""
        return self.machine.client.machine_info().free_bytes
