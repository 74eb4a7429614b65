namespace Aerostat.HyperV;

/// <summary>What a hypercall answers in bits 15..0 (TLFS, appendix C).</summary>
public enum HypercallStatus : ushort
{
    /// <summary>Done.</summary>
    Success = 0,
    /// <summary>No such hypercall.</summary>
    InvalidCode = 2,
    /// <summary>The control word is not one for this hypercall.</summary>
    InvalidInput = 3,
    /// <summary>Input or output is not aligned to 8 bytes, or crosses a page.</summary>
    InvalidAlignment = 4,
    /// <summary>A parameter makes no sense.</summary>
    InvalidParameter = 5,
    /// <summary>There is no port of that kind behind the connection.</summary>
    InvalidPortId = 17,
    /// <summary>No such connection.</summary>
    InvalidConnectionId = 18,
    /// <summary>The receiver's queue is full; try again.</summary>
    InsufficientBuffers = 19,
}
