using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Kernel;

/// <summary>Hyper-V's registers and calls as the processor has them.</summary>
internal sealed unsafe class KernelHyperV : HyperVPlatform
{
    private const uint Hypervisor = 0x4000_0000, HypervisorPresent = 1u << 31;

    // Leaf 3: SynIC, hypercalls and the number of the processor; messages and events may be sent. Leaf 4: interrupts are to be ended by their receiver.
    private const uint Privileges = (1u << 2) | (1u << 5) | (1u << 6), HighPrivileges = (1u << 4) | (1u << 5), NoAutomaticEnd = 1u << 9;

    private ulong page;

    public override bool IsPresent
    {
        get
        {
            uint* leaf = stackalloc uint[4];
            Processor.Cpuid(1, 0, leaf);
            if ((leaf[2] & HypervisorPresent) == 0)
                return false;
            Processor.Cpuid(Hypervisor, 0, leaf);
            if (leaf[0] < Hypervisor + 5 || leaf[1] != 0x7263_694D || leaf[2] != 0x666F_736F || leaf[3] != 0x7648_2074)
                return false;
            Processor.Cpuid(Hypervisor + 3, 0, leaf);
            return (leaf[0] & Privileges) == Privileges && (leaf[1] & HighPrivileges) == HighPrivileges;
        }
    }

    public override bool EndsInterrupts
    {
        get
        {
            uint* leaf = stackalloc uint[4];
            Processor.Cpuid(Hypervisor + 4, 0, leaf);
            return (leaf[0] & NoAutomaticEnd) != 0;
        }
    }

    public override byte Vector => LocalApic.HypervisorVector;

    public override ulong ReadMsr(uint register) => Processor.ReadMsr(register);

    public override void WriteMsr(uint register, ulong value) => Processor.WriteMsr(register, value);

    public override void UseHypercallPage(ulong code)
    {
        if (page != 0)
            PageTables.SetCode(page, code: false);
        page = code;
        if (page != 0)
            PageTables.SetCode(page, code: true);
    }

    public override ulong Hypercall(ulong control, ulong input, ulong output) => Processor.Hypercall(page, control, input, output);

    public override uint Exchange(ulong address, uint value) => Processor.Exchange((uint*)address, value);
}
